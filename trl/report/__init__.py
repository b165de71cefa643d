"""The comparison of a pipeline run: result files → tables, figures and one self-contained page."""

from trl.report.figures import save_figures
from trl.report.page import write_report
from trl.report.table import markdown_table, text_table, write_csv
from trl.results import load_results

__all__ = ["load_results", "markdown_table", "save_figures", "text_table", "write_csv", "write_report"]
