"""What a run keeps on the disk to go on later: whole and verified, or not there at all; no pickle.

`bundle` is one checkpoint, `shelf` the last ones of a search, `lock` keeps two runs apart. What is
in a checkpoint is the business of the rooms that make it.
"""

from gaprune.checkpoint.bundle import Bundle, DamagedError, read_bundle, write_bundle
from gaprune.checkpoint.lock import Lock, in_use_by, remark_in
from gaprune.checkpoint.shelf import Shelf

__all__ = [
    "Bundle",
    "DamagedError",
    "Lock",
    "Shelf",
    "in_use_by",
    "read_bundle",
    "remark_in",
    "write_bundle",
]
