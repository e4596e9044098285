"""The report of a run or a comparison, `report.html`: one self-contained page.

`reading` reads the files, `run_page` and `comparison_page` compute the content, and `templates/`
turn it into HTML.
"""

from gaprune.report.run_page import report_of, write_report

__all__ = ["report_of", "write_report"]
