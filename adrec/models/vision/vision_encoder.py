"""Pictures to vectors by a Hugging Face vision encoder (CLIP, SigLIP, DINOv2, ViT, ...) of a folder, a package or the hub.

Its weights stay as they are. Pictures are resized and normalised by the encoder's own image processor, the one that needs
nothing but Pillow. An encoder of pictures and texts (CLIP, SigLIP) gives vectors of both in one space.

# N pictures or texts, D width
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.errors import DataError
from adrec.models.text.hugging_face import load_backbone, load_tokenizer, open_quietly, quiet_transformers, resolve_reference

if TYPE_CHECKING:
    from PIL.Image import Image

PROCESSOR_FILE = "preprocessor_config.json"
_READS_AS = "1"
"""Of what makes a vector here beside the encoder's own files: part of its fingerprint."""
_BATCH = 32
_LONGEST_TEXT = 512


class VisionEncoder(nn.Module):
    """A backbone, its image processor and, where it reads texts too, its tokenizer.

    Attributes: `dimension` D, `fingerprint` (changes with anything that changes a vector), `reads_text`.
    """

    def __init__(self, backbone: nn.Module, processor: Any, tokenizer: Any | None = None) -> None:
        super().__init__()
        self.backbone, self.processor, self.tokenizer = backbone.eval(), processor, tokenizer
        self.requires_grad_(False)
        self._fingerprint: str | None = None
        with torch.inference_mode():
            self.dimension = int(self.pictures([_grey()]).shape[1])

    @property
    def reads_text(self) -> bool:
        """Whether it gives vectors of texts in the space of its pictures."""
        return self.tokenizer is not None

    @property
    def fingerprint(self) -> str:
        """32 hex digits over weights, image processor and tokenizer."""
        if self._fingerprint is None:
            digest = hashlib.sha256(f"{_READS_AS} {_settings(self.processor)}".encode())
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

    def pictures(self, pictures: "Sequence[Image]") -> NDArray[np.float32]:
        """(N, D) vectors of RGB pictures of any sizes, _BATCH at a time."""
        made = []
        with torch.inference_mode():
            for start in range(0, len(pictures), _BATCH):
                pixels = self.processor(images=list(pictures[start : start + _BATCH]), return_tensors="pt")["pixel_values"]
                made.append(self._of_pixels(pixels.to(self.device)).float().cpu().numpy())
        return np.concatenate(made) if made else np.zeros((0, self.dimension), np.float32)

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D) vectors of texts in the space of the pictures. Only where `reads_text`."""
        assert self.tokenizer is not None
        backbone, limit = cast(Any, self.backbone), min(self.tokenizer.model_max_length, _text_limit(self.backbone))
        # SigLIP has learned texts that are filled up; CLIP looks at no filling.
        fills = "max_length" if str(backbone.config.model_type).startswith("siglip") else True
        made = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                inputs = self.tokenizer(
                    list(texts[start : start + _BATCH]), padding=fills, truncation=True, max_length=limit, return_tensors="pt"
                )
                known = {name: inputs[name].to(self.device) for name in ("input_ids", "attention_mask") if name in inputs}
                made.append(_pooled(backbone.get_text_features(**known)).float().cpu().numpy())
        return np.concatenate(made) if made else np.zeros((0, self.dimension), np.float32)

    def save(self, folder: Path) -> None:
        """Write weights, image processor and tokenizer into a new `folder`; `load_vision_encoder` opens it."""
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            cast(Any, self.backbone).save_pretrained(folder)
            self.processor.save_pretrained(folder)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)

    def _of_pixels(self, pixels: Tensor) -> Tensor:
        backbone = cast(Any, self.backbone)
        if hasattr(backbone, "get_image_features"):
            return _pooled(backbone.get_image_features(pixel_values=pixels))
        return _pooled(backbone(pixel_values=pixels))


def load_vision_encoder(reference: str) -> VisionEncoder:
    """The encoder of a folder, `package:module/path` or hub name. Raises DataError, ResourceError in one line."""
    where = resolve_reference(reference)
    processor = _load_processor(where)
    backbone = load_backbone(where)
    if not _reads_pictures(backbone):
        raise DataError(f"{reference}: is no encoder of pictures. Name one such as CLIP, SigLIP, DINOv2 or ViT.")
    tokenizer = load_tokenizer(where) if hasattr(backbone, "get_text_features") else None
    try:
        return VisionEncoder(backbone, processor, tokenizer)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{reference}: cannot read a picture as its {PROCESSOR_FILE} says ({reason}).") from None


def _load_processor(where: Path | str) -> Any:
    import transformers

    if isinstance(where, Path) and not (where / PROCESSOR_FILE).is_file():
        raise DataError(f"{where}: holds no {PROCESSOR_FILE}, which says how it reads pictures. Copy it beside the weights.")
    # The other backend needs torchvision, whose releases are tied to one of torch.
    kind: Any = transformers.AutoImageProcessor
    return open_quietly(where, "image processor", lambda: kind.from_pretrained(where, backend="pil", trust_remote_code=False))


def _reads_pictures(backbone: nn.Module) -> bool:
    main = getattr(backbone, "main_input_name", "")
    return main == "pixel_values" or hasattr(backbone, "get_image_features")


def _pooled(output: Any) -> Tensor:
    """(N, D) of what a model gives: its pooled vector, else its first token, or the mean over places of a convolution's map."""
    if isinstance(output, Tensor):
        return output.flatten(1)
    pooled = getattr(output, "pooler_output", None)
    if pooled is not None:
        return cast(Tensor, pooled).flatten(1)
    states = cast(Tensor, output.last_hidden_state)
    return states[:, 0] if states.ndim == 3 else states.mean((2, 3))


def _text_limit(backbone: nn.Module) -> int:
    text = getattr(cast(Any, backbone).config, "text_config", None)
    return int(getattr(text, "max_position_embeddings", _LONGEST_TEXT))


def _settings(processor: Any) -> str:
    return json.dumps(processor.to_dict(), sort_keys=True, default=str)


def _grey() -> "Image":
    from PIL import Image

    return Image.new("RGB", (64, 64), (128, 128, 128))
