"""Texts cleaned and segmented; the tokenizer."""
