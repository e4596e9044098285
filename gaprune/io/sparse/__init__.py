"""The sparse file (`docs/sparse-format.md`): read bit for bit, or refused with a reason."""

from gaprune.io.sparse.file import (
    FORMAT,
    TABLE,
    VERSION,
    SparseFile,
    is_sparse,
    load_sparse,
    load_sparse_into,
)

__all__ = [
    "FORMAT",
    "TABLE",
    "VERSION",
    "SparseFile",
    "is_sparse",
    "load_sparse",
    "load_sparse_into",
]
