"""gaprune: prune a pretrained PyTorch network without its training data.

The weights stay frozen; evolution finds which of them to keep.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gaprune.comparison import Comparison, Question, compare, compare_target
    from gaprune.comparison.page import make_report
    from gaprune.comparison.sweeping import sweep
    from gaprune.errors import GapruneError, InputError
    from gaprune.exports import export, load_sparse
    from gaprune.files.mask_file import save_masks
    from gaprune.keeping.claim import save as save_run
    from gaprune.masks.supermask import attach, bake, detach
    from gaprune.measures import measure
    from gaprune.network.input_options import InputOptions
    from gaprune.network.target import Target, load_target
    from gaprune.outcome.result import Result
    from gaprune.outcome.run_directory import load_masks
    from gaprune.running.pipeline import prune, prune_target
    from gaprune.running.resumption import resume

__all__ = [
    "Comparison",
    "GapruneError",
    "InputError",
    "InputOptions",
    "Question",
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
    "comparison": ("Comparison", "Question", "compare", "compare_target"),
    "comparison.page": ("make_report",),
    "comparison.sweeping": ("sweep",),
    "errors": ("GapruneError", "InputError"),
    "exports": ("export", "load_sparse"),
    "files.mask_file": ("save_masks",),
    "keeping.claim": ("save_run",),
    "masks.supermask": ("attach", "bake", "detach"),
    "measures": ("measure",),
    "network.input_options": ("InputOptions",),
    "network.target": ("Target", "load_target"),
    "outcome.result": ("Result",),
    "outcome.run_directory": ("load_masks",),
    "running.pipeline": ("prune", "prune_target"),
    "running.resumption": ("resume",),
}
"""Where the public names live. Each is loaded when it is asked for: torch takes seconds."""
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_THERE = {"save_run": "save"}  # what some are called at home

if not TYPE_CHECKING:  # mypy would take any name for a public one

    def __getattr__(name: str) -> object:
        """Load a public name (PEP 562)."""
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = import_module(f"{__name__}.{_HOME_OF[name]}")
        globals()[name] = found = getattr(home, _THERE.get(name, name))
        return found

    def __dir__() -> list[str]:
        """List the public names too that are not loaded yet."""
        return sorted({*globals(), *__all__})
