"""gaprune: prune a pretrained PyTorch network without its training data.

The weights stay frozen; evolution finds which of them to keep.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gaprune.comparison import Comparison, ComparisonSpec, compare, compare_target
    from gaprune.comparison.comparison_report import make_report
    from gaprune.comparison.sweeps import sweep
    from gaprune.errors import GapruneError, InputError
    from gaprune.export import export, load_sparse
    from gaprune.export.measure import measure
    from gaprune.io.mask_file import save_masks
    from gaprune.masks.supermask import attach, bake, detach
    from gaprune.models.input_spec import InputOptions
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
_HOMES = {
    "comparison": ("Comparison", "ComparisonSpec", "compare", "compare_target"),
    "comparison.comparison_report": ("make_report",),
    "comparison.sweeps": ("sweep",),
    "errors": ("GapruneError", "InputError"),
    "export": ("export", "load_sparse"),
    "io.mask_file": ("save_masks",),
    "masks.supermask": ("attach", "bake", "detach"),
    "export.measure": ("measure",),
    "models.input_spec": ("InputOptions",),
    "models.target": ("Target", "load_target"),
    "runs.directory": ("load_masks",),
    "runs.open_directory": ("save_run",),
    "runs.prune": ("prune", "prune_target"),
    "runs.result": ("Result",),
    "runs.resume": ("resume",),
}
"""Where the public names live. Each is loaded when it is asked for: torch takes seconds."""
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # mypy would take any name for a public one

    def __getattr__(name: str) -> object:
        """Load a public name (PEP 562)."""
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = import_module(f"{__name__}.{_HOME_OF[name]}")
        globals()[name] = found = getattr(home, name)
        return found

    def __dir__() -> list[str]:
        """List the public names too that are not loaded yet."""
        return sorted({*globals(), *__all__})
