"""nn.Modules built from plain keyword arguments, and the baselines."""
