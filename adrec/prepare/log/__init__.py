"""Checked rows to events in order: requests, splits, appended days."""
