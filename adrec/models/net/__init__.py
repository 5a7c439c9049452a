"""The click network: modules built from plain keyword arguments."""
