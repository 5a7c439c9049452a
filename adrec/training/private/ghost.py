"""Gradients of single units through a language model, never written down: ghost norms and book-keeping.

The gradient of a linear layer for one unit is a product of what came in and what flows back; norms and clipped sums follow
from the two factors, so that no unit needs a copy of the weights (Li et al. 2022; one backward pass: Bu et al. 2023). Weights
that two layers share, as input and output vectors of words, are one parameter, and its norm knows both.

# B units (the first axis of all that goes through the network), T places, I, O widths of a layer
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adrec.errors import ConfigError


class _Product(NamedTuple):
    """A gradient (O, I) a unit: the sum over places of `out` times `into`; where `ids` is set, `out` is 1 at the id alone."""

    out: Tensor | None
    """(B, T, O)"""
    into: Tensor
    """(B, T, I)"""
    ids: Tensor | None = None
    """(B, T)"""

    def dot(self, other: "_Product") -> Tensor:
        """(B,) inner products of two gradients of one parameter."""
        into = self.into @ other.into.transpose(1, 2)  # (B, T, T')
        if self.ids is not None and other.ids is not None:
            out = (self.ids[:, :, None] == other.ids[:, None, :]).to(into.dtype)
        elif self.ids is not None:
            assert other.out is not None
            index = self.ids[:, None, :].expand(-1, other.out.shape[1], -1)
            out = other.out.gather(2, index).transpose(1, 2)
        elif other.ids is not None:
            return other.dot(self)
        else:
            assert self.out is not None and other.out is not None
            out = self.out @ other.out.transpose(1, 2)
        return (out * into).sum((1, 2))

    def summed(self, factors: Tensor, like: Tensor) -> Tensor:
        """(O, I), the gradients of all units times their `factors` (B,)."""
        into = factors[:, None, None] * self.into
        if self.ids is not None:
            return torch.zeros_like(like).index_add_(0, self.ids.flatten(), into.flatten(0, 1))
        assert self.out is not None
        return self.out.flatten(0, 1).T @ into.flatten(0, 1)


@dataclass
class Ghost:
    """What went through the layers of one forward and one backward pass of the summed losses of B units."""

    parameters: dict[str, Tensor]
    """those that are trained, by name"""
    _products: dict[int, list[_Product]] = field(default_factory=dict)
    _whole: dict[int, list[Tensor]] = field(default_factory=dict)
    """(B, ...) gradients of small parameters as they are"""

    def norms(self) -> Tensor:
        """(B,) of each unit's gradient over all parameters together."""
        squares: list[Tensor] = []
        for products in self._products.values():
            for number, product in enumerate(products):
                squares.append(product.dot(product))
                squares += [2.0 * product.dot(other) for other in products[:number]]
        squares += [torch.stack(parts).sum(0).flatten(1).square().sum(1) for parts in self._whole.values()]
        return torch.stack(squares).sum(0).clamp(min=0.0).sqrt()

    def summed(self, factors: Tensor) -> dict[str, Tensor]:
        """name → sum over units of gradient times factor (B,); zeros for what took no part."""
        sums = {}
        for name, parameter in self.parameters.items():
            total = torch.zeros_like(parameter)
            for product in self._products.get(id(parameter), ()):
                total += product.summed(factors, parameter)
            for own in self._whole.get(id(parameter), ()):
                total += torch.tensordot(factors, own, dims=1)
            sums[name] = total
        return sums

    def _note(self, module: nn.Module, came: Tensor, flows: Tensor) -> None:
        if isinstance(module, nn.Embedding):
            if module.padding_idx is not None:
                flows = flows * (came != module.padding_idx)[..., None]
            self._add(module.weight, _Product(None, flows, came))
            return
        if isinstance(module, nn.LayerNorm):
            normed = nn.functional.layer_norm(came, module.normalized_shape, eps=module.eps)
            self._keep(module.weight, (flows * normed).flatten(1, -2).sum(1))
            self._keep(module.bias, flows.flatten(1, -2).sum(1))
            return
        assert isinstance(module, nn.Linear)
        came, flows = (value if value.ndim == 3 else value[:, None] for value in (came, flows))
        self._add(module.weight, _Product(flows, came))
        self._keep(module.bias, flows.sum(1))

    def _add(self, parameter: Tensor, product: _Product) -> None:
        if parameter.requires_grad:
            self._products.setdefault(id(parameter), []).append(product)

    def _keep(self, parameter: Tensor | None, gradient: Tensor) -> None:
        if parameter is not None and parameter.requires_grad:
            self._whole.setdefault(id(parameter), []).append(gradient)


@contextmanager
def watched(model: nn.Module, units: int) -> Iterator[Ghost]:
    """Notes one forward and one backward pass of `units`. Raises ConfigError where a layer cannot be told apart."""
    parameters: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    ghost, handles, covered = Ghost(parameters), [], set()

    def forward(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        came = inputs[0].detach()
        if came.shape[0] != units:
            raise ConfigError(f"privacy: {type(module).__name__} of this encoder mixes units. Take another encoder.")
        output.register_hook(partial(_noted, ghost, module, came))  # type: ignore[no-untyped-call]

    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm) and any(value.requires_grad for value in own.values()):
            handles.append(module.register_forward_hook(forward))
            covered |= {id(value) for value in own.values()}
    left = [name for name, value in parameters.items() if id(value) not in covered]
    try:
        if left:
            raise ConfigError(f"privacy: nothing tells units apart in '{left[0]}' of this encoder. Take a BERT or a RoBERTa.")
        yield ghost
    finally:
        for handle in handles:
            handle.remove()


def _noted(ghost: Ghost, module: nn.Module, came: Tensor, flows: Tensor) -> None:
    ghost._note(module, came, flows.detach())
