"""Prepared folder to batches: safe table reading and writing, features, datasets."""
