"""A run on one page, from the files in its folder; tables for a terminal; the pages of prepared data and of samples."""

from xtoolkit.report.page import write_report

__all__ = ["write_report"]
