"""Commands that apply a bundle: score, encode, rank."""

import typer

PANEL = "Apply"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
