"""Texts as tokens: the corpus, packing, masking, pairs."""
