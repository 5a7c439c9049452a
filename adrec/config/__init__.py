"""Typed configs, one module a command. `base` loads them and reports every fault at once."""
