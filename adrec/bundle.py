"""A bundle: one folder with everything that scoring needs, which a stranger can read and which cannot run code."""
