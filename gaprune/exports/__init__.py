"""Export: a pruned network in the formats that other tools read, each read back before it counts.

`export` writes one; `EXPORTERS` lists them, `docs/sparse-format.md` documents our own. The package
has another name than the function, because importing a package hides a function of its name.
"""

from gaprune.exports.export_run import ExportResult, export
from gaprune.exports.format_registry import EXPORTERS, Exporter
from gaprune.io.sparse import load_sparse

__all__ = [
    "EXPORTERS",
    "ExportResult",
    "Exporter",
    "export",
    "load_sparse",
]
