"""What you get: a pruned network in the formats that people use, each read back before it counts.

`export` writes one; `formats` lists them, `docs/sparse-format.md` documents our own.
"""

from gaprune.exports.formats import EXPORTERS, Exporter
from gaprune.exports.writing import Exported, export
from gaprune.sparse import SparseFile, load_sparse, load_sparse_into

__all__ = [
    "EXPORTERS",
    "Exported",
    "Exporter",
    "SparseFile",
    "export",
    "load_sparse",
    "load_sparse_into",
]
