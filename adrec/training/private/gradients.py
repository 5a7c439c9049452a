"""The gradient of each unit by itself, cut to a norm, and summed: what the noise of DP-SGD is measured against.

Abadi et al. 2016, with users as units: McMahan et al. 2018. Rows of a batch share ads and contexts, so that hooks on layers
cannot tell whose gradient is whose; units taken apart (`units.apart`) go through the network side by side under `vmap`.
Costs the memory of one copy of the weights a unit of a chunk.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from adrec.data.batches.collate import Batch
from adrec.models.net.ctr_model import Outputs
from adrec.training.private.units import Units, apart

MOST_FLOATS, _MOST_ROWS, _MOST_USERS = 1 << 25, 512, 128
"""Of all weights of the units of a chunk together: 128 MB of gradients at once. Larger chunks are slower: padding, caches; so
are smaller ones, and users, who are unlike, are padded more than rows."""
_INPUTS = 4.0
"""Norm of a row's inputs to the straight line, as clipping is to see it."""

Loss = Callable[[Batch, Outputs], Tensor]


class Clipped(NamedTuple):
    """Sums over the units of a sample."""

    total: dict[str, Tensor]
    """name of a parameter → sum of the clipped gradients"""
    norms: Tensor
    """(U,) of each unit's gradient before it was cut"""
    loss: Tensor
    """sum of the rows' losses"""
    rows: Tensor


class UnitLoss(nn.Module):
    """The loss of one unit: the mean over its rows, times how many they are. `loss` takes the unit as a batch."""

    def __init__(self, model: nn.Module, loss: Loss, list_penalty: float = 0.0) -> None:
        super().__init__()
        self.model, self.loss, self.list_penalty = model, loss, list_penalty
        self.shares = shares_of(model)

    def forward(self, batch: Batch) -> Tensor:
        """A scalar."""
        outputs: Outputs = self.model(batch)
        known = ~torch.isnan(batch.labels[:, 0])
        total = self.loss(batch, outputs._replace(list_squares=None)) * known.sum()
        if outputs.list_squares is not None:
            total = total + self.list_penalty * torch.where(known, outputs.list_squares, 0.0).sum()
        return total


def shares_of(model: nn.Module) -> dict[str, float]:
    """`model.NAME` of a parameter → what its gradient is multiplied by before it is cut, and divided by after the noise.

    A straight line from the features to the logit has inputs of unit size and a hundred of them: its few weights made two
    thirds of each gradient's square (measured on the sample), so that the others were cut, and noised, for its sake.
    """
    wide = getattr(model, "wide", None)
    if not isinstance(wide, nn.Linear):
        return {}
    return {"model.wide.weight": min(1.0, _INPUTS / wide.in_features**0.5)}


def units_at_once(model: nn.Module, most_rows: int) -> int:
    """How many units of so many rows a chunk may hold."""
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return max(1, min(_MOST_ROWS if most_rows == 1 else _MOST_USERS, MOST_FLOATS // max(weights, 1)))


def clipped_gradients(loss: UnitLoss, units: Units, clip: Tensor | float) -> Clipped:
    """The sum over `units` of gradient * min(1, clip / norm), for every parameter of `loss` that is trained.

    Gradients, norms and sums are those in units of `loss.shares`.
    """
    parameters = {name: value.detach() for name, value in loss.named_parameters() if value.requires_grad}
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    norms, lost, rows = [], torch.zeros(()), torch.zeros(())
    for gradients, values, count in _of_chunks(loss, units, parameters):
        gradients = {name: own * loss.shares[name] if name in loss.shares else own for name, own in gradients.items()}
        squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients.values()])
        norm = squares.sum(0).sqrt()  # (U,)
        if not bool(torch.isfinite(norm).all()):  # one unit's overflow must not be the end of all others' part
            norm = torch.where(torch.isfinite(norm), norm, torch.inf)
            gradients = {name: torch.nan_to_num(gradient, 0.0, 0.0, 0.0) for name, gradient in gradients.items()}
        factor = (clip / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1.0)
        for name, gradient in gradients.items():
            total[name] += torch.tensordot(factor, gradient, dims=1)
        norms.append(norm)
        lost, rows = lost + values.sum().cpu(), rows + count.cpu()
    return Clipped(total, torch.cat(norms) if norms else torch.zeros(0), lost, rows)


def _of_chunks(
    loss: UnitLoss, units: Units, parameters: dict[str, Tensor]
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """For each chunk the gradients (U, ...) by name, the losses (U,) and the number of its rows."""
    for chunk in units.chunks:
        stacked = apart(units.batch, chunk)
        leaves: list[Tensor] = list(_leaves(stacked))

        def of_unit(weights: dict[str, Tensor], *tensors: Tensor, like: Any = stacked) -> Tensor:
            result: Tensor = functional_call(loss, weights, (_rebuilt(like, iter(tensors)),))
            return result

        run = vmap(grad_and_value(of_unit), in_dims=(None, *(0 for _ in leaves)), randomness="different")
        gradients, values = run(parameters, *leaves)
        yield gradients, values, chunk.real.sum()


def _leaves(value: Any) -> Iterator[Tensor]:
    """The tensors of a nest of tuples and lists, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _leaves(part)


def _rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nest of other tensors."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_rebuilt(part, tensors) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(_rebuilt(part, tensors) for part in value)
    return value
