"""Training under differential privacy: Poisson samples of units, a clipped gradient each, noise on their sum."""
