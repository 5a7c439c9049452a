"""Baselines on a table of features, counters and similarities, and that table."""
