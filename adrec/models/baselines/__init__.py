"""Simple models that keep the neural one honest."""
