"""Ranked lists and served events judged for other policies, arms and logs of lists."""
