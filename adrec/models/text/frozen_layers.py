"""The layers below the trained ones run once per distinct text: their output is kept, and only the upper layers are recomputed.

Frozen layers run without dropout, so that their output is a fact of the text.

# U texts, T tokens, D width
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn


class FrozenLayers:
    """Runs `backbone` (a Hugging Face encoder), of which layers `0 .. first - 1` and the embeddings are frozen.

    States are kept for as many texts as fit `most_bytes`, where the backbone runs; later ones are computed each time.
    `computed` counts the texts that went through the lower layers.
    """

    def __init__(self, backbone: nn.Module, path: str, first: int, *, most_bytes: int = 2 << 30) -> None:
        self.backbone = backbone
        self.layer = cast(nn.ModuleList, backbone.get_submodule(path))[first]
        self.upper = _without_layers(backbone, path.split("."), first)
        self.most_bytes, self.bytes = most_bytes, 0
        self.computed = 0
        self._kept: dict[bytes, Tensor] = {}

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States (U, T, D) after the last layer; texts are padded on the right."""
        lower = self._lower(input_ids, attention_mask)

        def give(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if inputs:
                return (lower, *inputs[1:]), named
            return inputs, {**named, "hidden_states": lower}

        hook = self.layer.register_forward_pre_hook(give, with_kwargs=True)
        try:
            return cast(Tensor, self.upper(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)
        finally:
            hook.remove()

    def _lower(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Input of the first trained layer (U, T, D), zero on padding."""
        lengths = attention_mask.sum(1).tolist()
        ids = input_ids.cpu().numpy()
        keys = [ids[row, :length].tobytes() for row, length in enumerate(lengths)]
        missing = [row for row, key in enumerate(keys) if key not in self._kept]
        new: dict[bytes, Tensor] = {}
        if missing:
            states = self._compute(input_ids[missing], attention_mask[missing])
            new = {keys[row]: states[place, : lengths[row]] for place, row in enumerate(missing)}
            self._keep(new)
        rows = [self._kept[key] if key in self._kept else new[key] for key in keys]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return nn.functional.pad(padded, (0, 0, 0, input_ids.shape[1] - padded.shape[1]))

    def _keep(self, states: dict[bytes, Tensor]) -> None:
        for key, state in states.items():
            size = state.numel() * state.element_size()
            if self.bytes + size <= self.most_bytes:
                self._kept[key] = state.clone()
                self.bytes += size

    @torch.no_grad()
    def _compute(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.computed += len(input_ids)
        training = self.backbone.training
        self.backbone.eval()
        hook = self.layer.register_forward_pre_hook(_stop, with_kwargs=True)
        try:
            self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        except _ReachedError as reached:
            return reached.states
        finally:
            hook.remove()
            self.backbone.train(training)
        raise AssertionError("the layer was not reached")


class _ReachedError(Exception):
    """Carries the states out of a forward pass that need not go on."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _stop(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    raise _ReachedError(given[0] if given else named["hidden_states"])


def _without_layers(module: nn.Module, path: list[str], first: int) -> nn.Module:
    """A copy that shares every part of `module`, but whose stack of layers at `path` begins at `first`."""
    if not path:
        return nn.ModuleList(list(cast(nn.ModuleList, module))[first:])
    made = copy.copy(module)
    made._modules = {**module._modules, path[0]: _without_layers(module.get_submodule(path[0]), path[1:], first)}
    return made
