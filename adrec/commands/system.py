"""Commands about adrec itself; `config` has a place of its own (adrec/cli/system.py)."""

from adrec.commands.table import Command

PANEL = "System"
COMMANDS = (
    Command(
        "doctor",
        PANEL,
        "doctor",
        "doctor:DoctorConfig",
        text="""
        Say whether this machine is ready: versions, device, optional parts, free disk, cache.

        Reads the installation and the machine. Writes nothing.

        Example: adrec doctor
        """,
    ),
)
