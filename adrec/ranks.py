"""Which process of a distributed training this is, by the environment: the first speaks and writes for all.

Lightning starts the processes of one machine itself and sets `LOCAL_RANK`; torchrun starts those of several machines.
"""

import os

TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Set by torchrun in each of its processes."""

OWN_STORES = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""At 1, torchrun's agents agree on a store anew for each start. Otherwise (torch 2.13) the first agent names its store
once, and an agent that joins a later start waits for that name in vain."""


RUN = "ADREC_RUN"
"""Names a training that was started on a cluster: where its processes start anew, the earlier ones have ended, anywhere."""


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
    """Names this start of all processes, the same in each of them: torchrun starts them again after a loss.

    Each agent counts its own restarts, so that one which came later counts fewer. Where each start has a store of its own
    (`OWN_STORES`), the store's port tells starts apart; elsewhere the port stays, and the count must.
    """
    names = [TORCHRUN, "MASTER_ADDR", "MASTER_PORT"]
    if os.environ.get(OWN_STORES) != "1":
        names.append("TORCHELASTIC_RESTART_COUNT")
    return "-".join(os.environ.get(name, "") for name in names)
