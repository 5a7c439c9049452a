"""How much of a text encoder is trained with the click model: the last layers, low-rank updates, or all of it.

Below the first trained layer nothing is differentiated, and with `last` the layers there run once per distinct text
(`adrec.models.text.frozen_layers`).
"""

import copy
from typing import Any, Literal, cast

from torch import nn

from adrec.errors import ConfigError, ResourceError, install_hint
from adrec.models.text.frozen_layers import FrozenLayers
from adrec.models.text.text_encoder import TextEncoder

Mode = Literal["last", "lora", "full"]


def trainable_copy(encoder: TextEncoder, mode: Mode, *, last_layers: int = 2, lora_rank: int = 8) -> TextEncoder:
    """A copy of `encoder` of which only what `mode` says has gradients; the original stays as it is.

    Raises ConfigError where the encoder has fewer layers than asked for, ResourceError where lora lacks its package.
    """
    trained = copy.deepcopy(encoder)
    if mode == "full":
        trained.requires_grad_(True)
        return trained
    trained.requires_grad_(False)
    trained.pool.requires_grad_(True)
    trained.above.requires_grad_(True)
    if mode == "last":
        path, layers = _layers(trained.backbone)
        if last_layers > len(layers):
            raise ConfigError(f"text.last_layers is {last_layers}, but the encoder has {len(layers)} layers.")
        for layer in list(layers)[-last_layers:]:
            layer.requires_grad_(True)
        if last_layers < len(layers):
            trained.frozen_layers = FrozenLayers(trained.backbone, path, len(layers) - last_layers)
        return trained
    trained.backbone = _with_lora(trained.backbone, lora_rank)
    return trained


def merged(encoder: TextEncoder) -> TextEncoder:
    """The encoder with low-rank updates added into its weights, ready to be saved like any other."""
    encoder.frozen_layers = None
    merge = getattr(encoder.backbone, "merge_and_unload", None)
    if merge is not None:
        encoder.backbone = cast(nn.Module, merge())
    return encoder.requires_grad_(False).eval()


def _layers(backbone: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of layers and its name: the ModuleList with as many entries as the config says."""
    wanted = getattr(getattr(backbone, "config", None), "num_hidden_layers", None)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return name, module
    raise ConfigError("text.train is 'last', but this encoder has no stack of layers. Use 'full' or 'frozen'.")


def _with_lora(backbone: nn.Module, rank: int) -> nn.Module:
    """LoRA (Hu et al. 2022): W + (alpha / rank) B A in every linear map, A and B trained."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ResourceError(f"text.train is 'lora', which needs the package peft. Run: {install_hint('lora')}") from None
    if not any(isinstance(module, nn.Linear) for module in backbone.modules()):
        raise ConfigError("text.train is 'lora', but this encoder has no linear maps. Use 'full' or 'frozen'.")
    config: Any = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0, bias="none")
    return cast(nn.Module, get_peft_model(cast(Any, backbone), config))
