"""A real network with a way to score it, and what stands in the way where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from gaprune.errors import GapruneError, InputError
from gaprune.models.target import Target


@dataclass(frozen=True, eq=False)
class RealNetwork:
    """A pretrained network with held-out data, which pruning never sees.

    Attributes:
        name: its key in `NETWORKS`.
        load: gives it as a target.
        outputs: from a network in evaluation mode to its outputs `[N, …]` for all held-out inputs.
        grade: from those outputs to one number, larger is better.
        agreement: from them and the dense network's to how alike they are, 1 where they are equal.
        held_out: how many held-out items the score is over.
        measure: what the score is, in words.
    """

    name: str
    load: Callable[[], Target]
    outputs: Callable[[nn.Module], Tensor]
    grade: Callable[[Tensor], float]
    agreement: Callable[[Tensor, Tensor], float]
    held_out: int
    measure: str

    def score(self, model: nn.Module) -> float:
        """Return the score of a network in evaluation mode."""
        return self.grade(self.outputs(model))


def package_folder(package: str, command: str = "pip install 'gaprune[bench]'") -> Path:
    """Return the folder of an installed package without importing it.

    Args:
        package: its name.
        command: what installs it.

    Raises:
        GapruneError: it is not installed.
    """
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise GapruneError(f"{package}: is not installed; {command}")
    return Path(found.submodule_search_locations[0])


def data_place(data: Path | None, *parts: str) -> Path:
    """Return a file or folder under the data folder.

    Raises:
        InputError: no data folder was given, or it lacks this.
    """
    inside = Path(*parts)
    if data is None:
        raise InputError(f"data: needs {inside}; give --data DIR with that in it")
    place = data / inside
    if not place.exists():
        raise InputError(f"data: {data} has no {inside}; name a folder that has it")
    return place
