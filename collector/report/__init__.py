"""The report: one HTML page about a period, with plots, that opens anywhere and loads nothing."""
