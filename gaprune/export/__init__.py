"""What you get: a pruned network in the formats that people use, each read back before it counts.

`export` writes one; `formats` lists them, `docs/sparse-format.md` documents our own.
"""

from gaprune.export.export_run import ExportResult, export
from gaprune.export.format_registry import EXPORTERS, Exporter
from gaprune.io.sparse import load_sparse

__all__ = [
    "EXPORTERS",
    "ExportResult",
    "Exporter",
    "export",
    "load_sparse",
]
