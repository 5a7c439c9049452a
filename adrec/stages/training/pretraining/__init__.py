"""The kinds of pretraining, and what they report."""
