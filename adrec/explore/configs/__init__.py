"""The configs that follow from what a log is."""
