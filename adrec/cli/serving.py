"""Commands that put a bundle to work: serve, explain, export."""

import typer

PANEL = "Ship"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
