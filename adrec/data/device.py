"""Device and processor threads. Apart from the trainer, so that scoring does not load Lightning (seconds) to know them."""

from typing import Any, Literal

import torch
from threadpoolctl import threadpool_limits

from adrec.errors import ResourceError


def resolve_device(device: str) -> str:
    """`auto` -> `cuda` where there is one, else `cpu`. Raises ResourceError for a `cuda` that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device is cuda, but torch sees no GPU here. Use --device cpu, or install a CUDA build of torch.")
    return device


def runs_bf16(precision: Literal["auto", "fp32", "bf16"], device: str | torch.device) -> bool:
    """Whether products are computed in bfloat16: as said, or with `auto` on a GPU that has it."""
    on_gpu = torch.device(device).type == "cuda"
    return precision == "bf16" or (precision == "auto" and on_gpu and torch.cuda.is_bf16_supported())


def encodes_bf16(precision: Literal["auto", "fp32", "bf16"], device: str | torch.device) -> bool:
    """Whether a frozen encoder computes in bfloat16: on GPUs alone, for processors are slower with it."""
    return torch.device(device).type == "cuda" and runs_bf16(precision, device)


def use_threads(count: int) -> None:
    """Keep this thread's work in torch, BLAS and OpenMP to so many processor threads.

    torch and OpenMP count them thread by thread, so every thread of a pool calls this. Idle BLAS threads spin: more of them
    than are of use cost processor time, not only none gained.
    """
    torch.set_num_threads(count)
    threadpool_limits(count)


def moved(value: Any, device: torch.device) -> Any:
    """A nest of tuples of tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        parts = [moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
