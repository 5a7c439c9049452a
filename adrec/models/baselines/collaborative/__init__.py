"""Baselines of who clicked what, that know no feature."""
