"""A student of fewer layers that starts as a copy of some of its teacher's, spread evenly (DistilBERT, Sanh et al., 2019)."""

import copy
from typing import Any, cast

import numpy as np
from torch import nn

from adrec.errors import ConfigError
from adrec.models.text.language_model import LanguageModel


def layer_stack(backbone: nn.Module) -> nn.ModuleList:
    """The transformer layers of an encoder. Raises ConfigError for an architecture that keeps them elsewhere."""
    for path in ("encoder.layer", "transformer.layer", "layers", "encoder.layers"):
        module: Any = backbone
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.ModuleList):
            return module
    raise ConfigError(f"{type(backbone).__name__}: its layers cannot be found, so it cannot be distilled.")


def chosen_layers(teacher: int, student: int) -> list[int]:
    """Which of the teacher's layers the student copies: spread evenly, the last one always among them."""
    if not 1 <= student < teacher:
        raise ConfigError(f"student layers must be 1 to {teacher - 1}, fewer than the teacher's {teacher}; found {student}.")
    return [int(number) for number in np.round(np.linspace(0, teacher, student + 1)[1:]).astype(int) - 1]


def make_student(teacher: LanguageModel, layers: int | None) -> LanguageModel:
    """A deep copy of the teacher with `layers` of its layers (None: half)."""
    student = LanguageModel(copy.deepcopy(teacher.model), new_weights=teacher.new_weights)
    stack = layer_stack(student.backbone)
    layers_left = chosen_layers(len(stack), max(1, len(stack) // 2) if layers is None else layers)
    config = cast(Any, student.config)
    types = getattr(config, "layer_types", None)
    kept_layers = [stack[number] for number in layers_left]
    del stack[:]
    stack.extend(kept_layers)
    config.num_hidden_layers = len(layers_left)
    if types is not None:
        config.layer_types = [types[number] for number in layers_left]
    return student
