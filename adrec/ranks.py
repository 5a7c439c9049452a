"""Which process of a distributed training this is, by the environment: the first speaks and writes for all.

Lightning starts the processes of one machine itself and sets `LOCAL_RANK`; torchrun starts those of several machines.
"""

import os

TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Set by torchrun in each of its processes."""


def by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return TORCHRUN in os.environ


def rank() -> int:
    """Number of this process among those of its training, 0 for one alone."""
    return int(os.environ["RANK"] if by_torchrun() else os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this process speaks and writes."""
    return rank() == 0


def attempt() -> str:
    """Names this start of all processes: torchrun starts them again after a loss."""
    names = (TORCHRUN, "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
    return "-".join(os.environ.get(name, "") for name in names)
