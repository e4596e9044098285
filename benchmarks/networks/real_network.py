"""A real network with its score, and errors for missing packages or data."""

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
    """A pretrained network with test data, which pruning never uses.

    Attributes:
        name: its key in `NETWORKS`.
        load: loads it as a target.
        outputs: maps a network in evaluation mode to its outputs `[N, …]` for all test inputs.
        grade: maps these outputs to the score; larger is better.
        agreement: maps pruned and dense outputs to their similarity; 1 for equal outputs.
        test_count: number of test items.
        measure: description of the score.
    """

    name: str
    load: Callable[[], Target]
    outputs: Callable[[nn.Module], Tensor]
    grade: Callable[[Tensor], float]
    agreement: Callable[[Tensor, Tensor], float]
    test_count: int
    measure: str

    def score(self, model: nn.Module) -> float:
        """Return the score of a network in evaluation mode."""
        return self.grade(self.outputs(model))


def package_folder(package: str, command: str = "pip install 'gaprune[bench]'") -> Path:
    """Return the folder of an installed package without importing it.

    Args:
        package: name of the package.
        command: command that installs it, for the error message.

    Raises:
        GapruneError: the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise GapruneError(f"{package}: is not installed; {command}")
    return Path(spec.submodule_search_locations[0])


def data_path(data: Path | None, *parts: str) -> Path:
    """Return a file or folder under the data folder.

    Raises:
        InputError: there is no data folder, or it lacks the file.
    """
    inside = Path(*parts)
    if data is None:
        raise InputError(f"data: needs {inside}; give --data DIR with this file")
    path = data / inside
    if not path.exists():
        raise InputError(f"data: {data} has no {inside}; name a folder with it")
    return path
