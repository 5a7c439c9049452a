"""Typed configs, one module a command, in the rooms of `stages`. `base` loads them and reports every fault at once."""
