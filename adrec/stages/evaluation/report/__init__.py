"""The report: plots and one page, self-contained."""
