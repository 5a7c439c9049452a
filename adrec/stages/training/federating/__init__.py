"""Federated training: what server and clients share, and the two of them over a network."""
