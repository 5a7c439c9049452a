"""Commands about adrec itself: doctor, config schema."""

import typer

PANEL = "System"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
