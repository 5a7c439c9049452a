"""Commands for every day."""

from adrec.commands.table import Command

PANEL = "Every day"
COMMANDS = (
    Command(
        "daily",
        PANEL,
        "registry.daily",
        "training.daily:DailyConfig",
        writes=("registry", "REGISTRY"),
        text="""
        Take in new files, train on from yesterday's bundle, judge it beside that one, and promote it or refuse it.

        Reads the configs of preprocess and finetune that it names. Writes the prepared folder, and the registry: a folder
        of bundles with their records, and `champion`, the one to serve. Exit code 0: promoted; 3: refused, yesterday's
        bundle stays; 1: a fault. Killed anywhere, the same command finishes the work.

        Example: adrec daily --set preprocess=preprocess.yaml --set finetune=finetune.yaml --set registry=runs/registry
        """,
    ),
    Command(
        "registry",
        PANEL,
        "registry.show",
        "training.daily:RegistryConfig",
        writes=("path", "REGISTRY"),
        argument="path",
        options=("promote", "roll_back"),
        text="""
        Show the bundles of a registry and who is champion; promote one by hand, or roll back to the champion before.

        Reads the folder that `adrec daily` keeps. Writes which bundle its `champion` is, where asked to.

        Example: adrec registry runs/sample/registry --roll-back
        """,
    ),
)
