"""Commands that train: pretrain-mlm (alias pretrain), finetune, distill, tune."""

import typer

PANEL = "Train"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
