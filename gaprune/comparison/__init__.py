"""Compare every method on the same network, sparsities and held-out labels."""

from gaprune.comparison.comparison_report import Comparison
from gaprune.comparison.methods.method_registry import (
    Method,
    added_methods,
    find_methods,
    known_methods,
)
from gaprune.comparison.rows import MethodRequirements, MethodSummary, Row, summarise
from gaprune.comparison.run_comparison import compare, compare_target
from gaprune.comparison.spec import ComparisonData, ComparisonSpec
from gaprune.comparison.store import Store, open_store, read_rows

__all__ = [
    "Comparison",
    "ComparisonData",
    "ComparisonSpec",
    "Method",
    "MethodRequirements",
    "MethodSummary",
    "Row",
    "Store",
    "added_methods",
    "compare",
    "compare_target",
    "find_methods",
    "known_methods",
    "open_store",
    "read_rows",
    "summarise",
]
