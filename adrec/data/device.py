"""Which device a config means. Apart from the trainer, so that scoring does not load Lightning (seconds) to know it."""

import torch

from adrec.errors import ResourceError


def resolve_device(device: str) -> str:
    """`auto` -> `cuda` where there is one, else `cpu`. Raises ResourceError for a `cuda` that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device is cuda, but torch sees no GPU here. Use --device cpu, or install a CUDA build of torch.")
    return device
