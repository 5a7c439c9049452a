"""Commands that judge results: evaluate, compare."""

import typer

PANEL = "Judge"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
