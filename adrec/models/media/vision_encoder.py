"""Pictures to vectors by a Hugging Face vision encoder (CLIP, SigLIP, DINOv2, ViT, ...) of a folder, a package or the hub.

Pictures are resized and normalised by the encoder's own image processor, the one that needs nothing but Pillow.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn

from adrec.errors import DataError
from adrec.models.media.media_encoder import MediaEncoder, load_parts, pooled

if TYPE_CHECKING:
    from PIL.Image import Image


class VisionEncoder(MediaEncoder):
    """Encodes RGB pictures of any sizes."""

    THING: ClassVar[str] = "picture"
    READS_AS: ClassVar[str] = "1"

    def blank(self) -> "Image":
        """A grey square."""
        from PIL import Image

        return Image.new("RGB", (64, 64), (128, 128, 128))

    def vectors(self, items: "Sequence[Image]") -> Tensor:
        """(N, D) of pictures."""
        pixels = self.processor(images=list(items), return_tensors="pt")["pixel_values"].to(self.device)
        backbone = cast(Any, self.backbone)
        if hasattr(backbone, "get_image_features"):
            return pooled(backbone.get_image_features(pixel_values=pixels))
        return pooled(backbone(pixel_values=pixels))


def load_vision_encoder(reference: str, *, cache: Path | None = None, keep: bool = False) -> VisionEncoder:
    """The encoder of a folder, `package:module/path` or hub name; `cache` and `keep` as in `measure`. Raises DataError,
    ResourceError in one line."""
    # The other backend of image processors needs torchvision, whose releases are tied to one of torch.
    backbone, processor, tokenizer = load_parts(reference, "AutoImageProcessor", "pictures", backend="pil")
    if not _reads_pictures(backbone):
        raise DataError(f"{reference}: is no encoder of pictures. Name one such as CLIP, SigLIP, DINOv2 or ViT.")
    encoder = VisionEncoder(backbone, processor, tokenizer)
    encoder.measure(reference, cache=cache, keep=keep)
    return encoder


def _reads_pictures(backbone: nn.Module) -> bool:
    return getattr(backbone, "main_input_name", "") == "pixel_values" or hasattr(backbone, "get_image_features")
