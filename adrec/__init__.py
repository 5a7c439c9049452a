"""adrec: the whole life of a language-model ad recommender, from raw logs to a server."""

__version__ = "0.1.0"
