"""gaprune: prune a pretrained PyTorch network without its training data.

The weights stay frozen; evolution finds which of them to keep.
"""

from gaprune.comparison import Comparison, Question, compare, compare_target
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
    "measure",
    "prune",
    "prune_target",
    "resume",
    "save_masks",
    "save_run",
]
