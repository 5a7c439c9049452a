"""Pretraining objectives: each a feed (data to batches) and a loss on the shared language model."""
