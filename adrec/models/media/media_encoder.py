"""A Hugging Face encoder of pictures or sounds with the processor that its authors gave it. Its weights stay as they are.

An encoder of both these and texts (CLIP, SigLIP, CLAP) gives vectors of both in one space.

# N pictures, sounds or texts, D width
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.data.text.vector_cache import cached_vectors
from adrec.errors import DataError
from adrec.models.text.hugging_face import load_backbone, load_tokenizer, open_quietly, quiet_transformers, resolve_reference

PROCESSOR_FILE = "preprocessor_config.json"
_BATCH = 32
_LONGEST_TEXT = 512


class MediaEncoder(nn.Module):
    """A backbone, its processor and, where it reads texts too, its tokenizer.

    Attributes: `dimension` D, known once `measure` was called, `fingerprint` (changes with anything that changes a vector),
    `reads_text`.
    """

    THING: ClassVar[str]
    """What it reads one of, for messages."""
    READS_AS: ClassVar[str]
    """Of what makes a vector here beside the encoder's own files: part of its fingerprint."""
    AT_ONCE: ClassVar[int] = _BATCH
    """Pictures or sounds in one pass."""

    def __init__(self, backbone: nn.Module, processor: Any, tokenizer: Any | None = None) -> None:
        super().__init__()
        self.backbone, self.processor, self.tokenizer = backbone.eval(), processor, tokenizer
        self.requires_grad_(False)
        self._fingerprint: str | None = None
        self.dimension = 0

    def measure(self, reference: str, *, cache: Path | None = None, keep: bool = False) -> None:
        """Find the `dimension`, by something that says nothing. With `keep` it is kept in `cache` as all vectors are, so that a
        run that was killed and goes on encodes it no second time. Raises DataError, which names the `reference`, where
        processor and model do not fit each other.
        """

        def encode(contents: list[str]) -> NDArray[np.float32]:
            return self.encode([self.blank()])

        named, fingerprint = ["blank"], f"{self.fingerprint}-blank"
        try:
            made = cached_vectors(named, fingerprint=fingerprint, encode=encode, folder=cache) if keep else encode(named)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:160]
            what = f"cannot read a {self.THING} as its {PROCESSOR_FILE} says"
            raise DataError(f"{reference}: {what} ({reason}).") from None
        self.dimension = int(made.shape[1])

    @abstractmethod
    def blank(self) -> Any:
        """Something to encode that says nothing."""

    @abstractmethod
    def vectors(self, items: Sequence[Any]) -> Tensor:
        """(N, D) of at most AT_ONCE pictures or sounds."""

    @property
    def reads_text(self) -> bool:
        """Whether it gives vectors of texts in the space of its pictures or sounds."""
        return self.tokenizer is not None

    @property
    def fingerprint(self) -> str:
        """32 hex digits over weights, processor and tokenizer."""
        if self._fingerprint is None:
            settings = json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
            digest = hashlib.sha256(f"{self.READS_AS} {settings}".encode())
            if self.tokenizer is not None:
                digest.update(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode())
            for name, tensor in sorted(self.backbone.state_dict().items()):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
            self._fingerprint = digest.hexdigest()[:32]
        return self._fingerprint

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next(self.backbone.parameters()).device

    def encode(self, items: Sequence[Any]) -> NDArray[np.float32]:
        """(N, D) vectors of pictures or sounds as they were decoded, AT_ONCE at a time."""
        made = []
        with torch.inference_mode():
            for start in range(0, len(items), self.AT_ONCE):
                made.append(self.vectors(items[start : start + self.AT_ONCE]).float().cpu().numpy())
        return np.concatenate(made) if made else np.zeros((0, self.dimension), np.float32)

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D) vectors of texts in the space of the pictures or sounds. Only where `reads_text`."""
        assert self.tokenizer is not None
        backbone, limit = cast(Any, self.backbone), min(self.tokenizer.model_max_length, _text_limit(self.backbone))
        # SigLIP has learned from texts that are filled up, and reads the filling like words; CLIP looks at none.
        is_filled = str(backbone.config.model_type).startswith("siglip")
        fills, names = ("max_length", ("input_ids",)) if is_filled else (True, ("input_ids", "attention_mask"))
        made = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                inputs = self.tokenizer(
                    list(texts[start : start + _BATCH]), padding=fills, truncation=True, max_length=limit, return_tensors="pt"
                )
                known = {name: inputs[name].to(self.device) for name in names if name in inputs}
                made.append(pooled(backbone.get_text_features(**known)).float().cpu().numpy())
        return np.concatenate(made) if made else np.zeros((0, self.dimension), np.float32)

    def save(self, folder: Path) -> None:
        """Write weights, processor and tokenizer into a new `folder`; what loaded this encoder opens it."""
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            cast(Any, self.backbone).save_pretrained(folder)
            self.processor.save_pretrained(folder)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)


def load_parts(reference: str, processors: str, what: str, **options: Any) -> tuple[nn.Module, Any, Any | None]:
    """Backbone, processor of the `transformers` class `processors` and tokenizer, if it reads texts, of a folder,
    `package:module/path` or hub name. `what` it reads, for messages. Raises DataError, ResourceError in one line."""
    import transformers

    where = resolve_reference(reference)
    if isinstance(where, Path) and not (where / PROCESSOR_FILE).is_file():
        raise DataError(f"{where}: holds no {PROCESSOR_FILE}, which says how it reads {what}. Copy it beside the weights.")
    kind: Any = getattr(transformers, processors)
    processor = open_quietly(where, "processor", lambda: kind.from_pretrained(where, trust_remote_code=False, **options))
    backbone = load_backbone(where, with_decoder=True)
    return backbone, processor, load_tokenizer(where) if hasattr(backbone, "get_text_features") else None


def pooled(output: Any) -> Tensor:
    """(N, D) of what a model gives: its pooled vector, else its first token, or the mean over places of a convolution's map."""
    if isinstance(output, Tensor):
        return output.flatten(1)
    given = getattr(output, "pooler_output", None)
    if given is not None:
        return cast(Tensor, given).flatten(1)
    states = cast(Tensor, output.last_hidden_state)
    return states[:, 0] if states.ndim == 3 else states.mean((2, 3))


def _text_limit(backbone: nn.Module) -> int:
    text = getattr(cast(Any, backbone).config, "text_config", None)
    return int(getattr(text, "max_position_embeddings", _LONGEST_TEXT))
