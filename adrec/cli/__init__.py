"""The Typer app. No logic; heavy imports stay inside commands."""
