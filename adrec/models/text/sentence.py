"""What a sentence-transformers folder says beyond the weights: pooling, the layers above it, prompts, the longest text.

`modules.json` lists the steps from text to vector. Each is either read here as its library reads it or refused in one line:
a vector that is merely near to the right one is worse than none, since nobody sees it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adrec.errors import DataError

Role = Literal["document", "query"]
"""Which side of a comparison a text is on: ads are documents; queries and interests ask for them."""
_PROMPT_NAMES: dict[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_POOLINGS = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "lasttoken": "last",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)
}
ABOVE_FILE = "above.safetensors"


@dataclass(frozen=True)
class Reading:
    """How a text becomes a vector, beside tokenizer, backbone and pooling."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    """role → what stands before a text of it"""
    lower: bool = False
    """texts are read in lower case"""
    width: int | None = None
    """first numbers of each vector that are kept (Matryoshka, Kusupati et al. 2022); None: all"""

    def of(self, text: str, role: Role) -> str:
        """The text as it is tokenized. A blank one stays blank: nothing is known of it."""
        if not text or text.isspace():
            return text
        whole = self.prompts.get(role, "") + text
        return whole.lower() if self.lower else whole

    @property
    def tells_roles_apart(self) -> bool:
        """Whether one text has two vectors."""
        return self.prompts.get("query", "") != self.prompts.get("document", "")

    def to_json(self) -> dict[str, Any]:
        """What differs from the plain reading."""
        values = {"prompts": dict(self.prompts), "lower": self.lower, "width": self.width}
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Reading":
        """What `to_json` gave."""
        return cls(dict(values.get("prompts") or {}), bool(values.get("lower")), values.get("width"))


class Above(nn.Module):
    """Layers between the pooled vector and the text's: dense ones, and unit length. `steps`: see `to_json`."""

    def __init__(self, steps: Sequence[Mapping[str, Any]] = ()) -> None:
        """Raises ValueError for a step that is not known."""
        super().__init__()
        self.steps = [dict(step) for step in steps]
        made: list[nn.Module] = []
        for step in self.steps:
            if step["kind"] == "dense":
                linear = nn.Linear(int(step["in"]), int(step["out"]), bias=bool(step["bias"]))
                made.append(nn.Sequential(linear, _ACTIVATIONS[step["activation"]]()))
            elif step["kind"] == "normalize":
                made.append(Unit())
            else:
                raise ValueError(f"no layer '{step['kind']}'")
        self.layers = nn.Sequential(*made)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def out(self) -> int | None:
        """Width of the result; None where it is that of what comes in."""
        widths = [int(step["out"]) for step in self.steps if step["kind"] == "dense"]
        return widths[-1] if widths else None

    def forward(self, pooled: Tensor, width: int | None) -> Tensor:
        """(U, D) → (U, `width` or `out`). What is cut has unit length again where it had before."""
        vectors: Tensor = self.layers(pooled)
        if width is None:
            return vectors
        cut = vectors[..., :width]
        return nn.functional.normalize(cut, dim=-1) if self.steps and self.steps[-1]["kind"] == "normalize" else cut


class Unit(nn.Module):
    """Unit length."""

    def forward(self, vectors: Tensor) -> Tensor:
        """(U, D) → (U, D)."""
        return nn.functional.normalize(vectors, dim=-1)


@dataclass(frozen=True)
class Recorded:
    """What a folder says of itself: settings of ours, weights of the layers above, and the folder of the backbone."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]
    inner: Path


def read_recorded(folder: Path) -> Recorded:
    """The settings of a sentence-transformers folder; none where it is a plain Hugging Face one.

    Raises DataError where it holds a step that adrec does not know.
    """
    settings: dict[str, Any] = {}
    listed = _json(folder / "modules.json", list)
    if listed is None:
        pooling = folder / "1_Pooling"
        if (pooling / "config.json").exists():
            settings["pooling"] = _pooling(pooling)
        return Recorded(settings, {}, folder)
    steps: list[dict[str, Any]] = []
    weights: dict[str, Tensor] = {}
    inner = folder
    for number, module in enumerate(listed):
        named, where = str(module.get("type", "")), _inside(folder, str(module.get("path", "")))
        kind = named.rsplit(".", 1)[-1] if named.startswith("sentence_transformers.") else named
        if kind == "Transformer" and number == 0:
            inner = where
        elif kind == "Pooling" and number == 1:
            settings["pooling"] = _pooling(where)
        elif kind == "Dense" and number > 1:
            step, linear = _dense(where)
            weights |= {f"layers.{len(steps)}.0.{name}": tensor for name, tensor in linear.items()}
            steps.append(step)
        elif kind == "Normalize" and number > 1:
            steps.append({"kind": "normalize"})
        else:
            raise DataError(
                f"{folder}: its modules.json has '{kind}' as step {number + 1}, which adrec does not know (a Transformer, then "
                "Pooling, then Dense or Normalize). Take another encoder."
            )
    if "pooling" not in settings:
        raise DataError(f"{folder}: its modules.json has no Pooling step: it gives no one vector a text. Take another encoder.")
    if steps:
        settings["above"] = steps
    settings |= _prompts(folder)
    recorded = _json(inner / "sentence_bert_config.json", dict) or _json(folder / "sentence_bert_config.json", dict) or {}
    _refuse_odd(inner, recorded)
    if recorded.get("max_seq_length"):
        settings["max_tokens"] = int(recorded["max_seq_length"])
    if recorded.get("do_lower_case"):
        settings["lower"] = True
    return Recorded(settings, weights, inner)


def _pooling(folder: Path) -> str:
    """Our name of the one pooling. Raises DataError for several at once, or one that is not known."""
    config = _json(folder / "config.json", dict)
    if config is None:
        raise DataError(f"{folder}: holds no config.json. Copy the encoder folder again.")
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    modes = modes or [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    unknown = [flag for flag in config if flag.startswith("pooling_mode_") and config[flag] and flag not in _FLAGS]
    if len(modes) != 1 or unknown or modes[0] not in _POOLINGS:
        found = ", ".join([*map(str, modes), *unknown])
        raise DataError(f"{folder / 'config.json'}: pools by {found}; adrec reads one of {', '.join(_POOLINGS)}.")
    if config.get("include_prompt") is False:
        raise DataError(f"{folder / 'config.json'}: leaves the prompt's tokens out of the mean, which adrec does not do.")
    return _POOLINGS[modes[0]]


def _dense(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A dense layer and its weights."""
    config = _json(folder / "config.json", dict) or {}
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1].split("(")[0]
    known = {"in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name"}
    odd = [name for name in sorted(set(config) - known) if config[name]] or [
        f"{name} '{config[name]}'"
        for name in ("module_input_name", "module_output_name")
        if config.get(name) not in {None, "sentence_embedding"}
    ]
    if activation not in _ACTIVATIONS or odd or "in_features" not in config:
        what = f"the activation '{activation}'" if activation not in _ACTIVATIONS else ", ".join(odd) or "no in_features"
        raise DataError(f"{folder / 'config.json'}: a Dense layer with {what}, which adrec does not know.")
    weights = _weights(folder)
    step = {
        "kind": "dense",
        "in": int(config["in_features"]),
        "out": int(config["out_features"]),
        "bias": bool(config.get("bias", True)),
        "activation": activation,
    }
    wanted = {"weight": (step["out"], step["in"]), **({"bias": (step["out"],)} if step["bias"] else {})}
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != wanted:
        raise DataError(f"{folder}: its weights are not those of its config.json. Copy the encoder folder again.")
    return step, {name: tensor.float() for name, tensor in weights.items()}


def _weights(folder: Path) -> dict[str, Tensor]:
    """Of a dense layer, by name. Pickles are read as tensors alone, so that no code of theirs runs."""
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if safe.exists():
            from safetensors.torch import load_file

            found: dict[str, Tensor] = load_file(safe)
        else:
            found = torch.load(pickled, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{folder}: its weights cannot be read ({type(error).__name__}). Copy the encoder folder again."
        ) from None
    return {name.removeprefix("linear."): tensor for name, tensor in found.items()}


def _prompts(folder: Path) -> dict[str, Any]:
    """The prompts of queries and ads, by role; the default prompt is that of both where neither has one."""
    config = _json(folder / "config_sentence_transformers.json", dict) or {}
    prompts = {str(name): str(text or "") for name, text in (config.get("prompts") or {}).items()}
    default = prompts.get(str(config.get("default_prompt_name")), "")
    ours = {}
    for role, names in _PROMPT_NAMES.items():
        text = next((prompts[name] for name in names if name in prompts), default)
        if text:
            ours[role] = text
    return {"prompts": ours} if ours else {}


def _refuse_odd(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises DataError where the backbone is read in a way of its own."""
    usual = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    odd = [name for name, value in usual.items() if config.get(name, value) != value]
    odd += [name for name in ("query_length", "document_length", "query_expansion", "processing_kwargs") if config.get(name)]
    text = (config.get("modality_config") or {}).get("text", {})
    if text.get("method", "forward") != "forward" or text.get("method_output_name", "last_hidden_state") != "last_hidden_state":
        odd.append("modality_config")
    if odd:
        raise DataError(f"{folder / 'sentence_bert_config.json'}: sets {', '.join(odd)}, which adrec does not know.")


def _json(path: Path, kind: type) -> Any:
    """None where there is no such file. Raises DataError where it is damaged."""
    if not path.exists():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        held = None
    if not isinstance(held, kind):
        raise DataError(f"{path}: not valid JSON of its kind. Copy the encoder folder again.")
    return held


def _inside(folder: Path, path: str) -> Path:
    where = folder / path
    if not where.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{folder}: its modules.json names '{path}' outside the folder. Take another encoder.")
    return where
