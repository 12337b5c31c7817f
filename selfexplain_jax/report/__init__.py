"""What was measured, to be read: tables to paste, figures, and one page that needs nothing beside itself.

Knows files and numbers, and no model.
"""

from selfexplain_jax.report.latex import comparison_latex
from selfexplain_jax.report.page import write_report
from selfexplain_jax.report.tables import comparison_csv, comparison_markdown, comparison_rows

__all__ = ["comparison_csv", "comparison_latex", "comparison_markdown", "comparison_rows", "write_report"]
