"""Prune a pretrained PyTorch network without its training data.

The weights stay frozen; a genetic algorithm decides which of them to keep.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gaprune.comparison import Comparison, ComparisonSpec, compare, compare_target
    from gaprune.comparison.comparison_report import make_report
    from gaprune.comparison.sweeps import sweep
    from gaprune.errors import GapruneError, GapruneWarning, InputError
    from gaprune.exports import export, load_sparse
    from gaprune.exports.measure import measure
    from gaprune.io.mask_file import save_masks
    from gaprune.masks.supermask import attach, bake, detach
    from gaprune.models.input_spec import InputOptions
    from gaprune.models.parametrizations import fold_parametrizations
    from gaprune.models.target import Target, load_target
    from gaprune.runs.directory import load_masks
    from gaprune.runs.open_directory import save_run
    from gaprune.runs.prune import prune, prune_target
    from gaprune.runs.result import Result
    from gaprune.runs.resume import resume

__all__ = [
    "Comparison",
    "ComparisonSpec",
    "GapruneError",
    "GapruneWarning",
    "InputError",
    "InputOptions",
    "Result",
    "Target",
    "attach",
    "bake",
    "compare",
    "compare_target",
    "detach",
    "export",
    "fold_parametrizations",
    "load_masks",
    "load_sparse",
    "load_target",
    "make_report",
    "measure",
    "prune",
    "prune_target",
    "resume",
    "save_masks",
    "save_run",
    "sweep",
]
_MODULES = {
    "comparison": ("Comparison", "ComparisonSpec", "compare", "compare_target"),
    "comparison.comparison_report": ("make_report",),
    "comparison.sweeps": ("sweep",),
    "errors": ("GapruneError", "GapruneWarning", "InputError"),
    "exports": ("export", "load_sparse"),
    "io.mask_file": ("save_masks",),
    "masks.supermask": ("attach", "bake", "detach"),
    "exports.measure": ("measure",),
    "models.input_spec": ("InputOptions",),
    "models.parametrizations": ("fold_parametrizations",),
    "models.target": ("Target", "load_target"),
    "runs.directory": ("load_masks",),
    "runs.open_directory": ("save_run",),
    "runs.prune": ("prune", "prune_target"),
    "runs.result": ("Result",),
    "runs.resume": ("resume",),
}
"""Module → public names. They are loaded on first use: importing torch takes seconds."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # else mypy would accept any name

    def __getattr__(name: str) -> object:
        """Load a public name (PEP 562)."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """List the public names, loaded or not, and no others."""
        return sorted(__all__)
