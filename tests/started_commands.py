"""Commands of gaprune as real processes, for tests that stop them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import Ran

from benchmarks.cluster import commands as watched


class Command(watched.Command):
    """A real process of `python -m gaprune`."""

    def end(self) -> Ran:
        """Wait for the end and return what it did."""
        return Ran(*self.finish())


@contextmanager
def starting(place: Path) -> Iterator[Callable[..., Command]]:
    """Give a way to start commands; whatever is left of them at the end is killed."""
    started: list[Command] = []

    def call(*arguments: str) -> Command:
        started.append(Command(place, *arguments))
        return started[-1]

    yield call
    for command in started:
        command.kill()
