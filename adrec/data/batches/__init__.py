"""Rows to batches of tensors: which rows, in what order, as what."""
