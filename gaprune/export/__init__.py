"""Export: a pruned network in the formats that other tools read, each read back before it counts.

`export` writes one; `EXPORTERS` lists them, `docs/sparse-format.md` documents our own.
"""

import inspect
import sys
from types import ModuleType
from typing import Any

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


class _CallablePackage(ModuleType):
    """Makes `gaprune.export(...)` work: importing this package hides the function of its name."""

    __signature__ = inspect.signature(export)

    def __call__(self, *arguments: Any, **options: Any) -> ExportResult:
        return export(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
