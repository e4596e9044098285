"""A page to read, `report.html`: one file that needs nothing else, made of a run or a comparison.

`reading` says what there is, `run_page` and `comparison_page` what is shown, `charts`, `dots`,
`pictures` and `masks` how it is drawn, and `templates/` how it looks.
"""

from gaprune.report.comparison_page import (
    ComparisonPage,
    MethodScores,
    SparsityScore,
    comparison_page,
)
from gaprune.report.run_page import report_of, write_report

__all__ = [
    "ComparisonPage",
    "MethodScores",
    "SparsityScore",
    "comparison_page",
    "report_of",
    "write_report",
]
