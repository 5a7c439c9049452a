"""The sample's pictures: what an ad looks like, which no word tells, and an encoder that sees it.

A picture's ground has a hue, on which grey shapes stand. How much people like a hue depends on their age (`clicks.attraction`).
PNG files of 48 x 48 pixels, some 2 KB each, each drawn from its own seed.
"""

import colorsys
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.sample.world import Floats

SIDE = 48
FOLDER, ENCODER = "pictures", "picture_encoder"
_SEED = 7


def draw_looks(count: int, generator: np.random.Generator) -> Floats:
    """(A,) the hue of each ad's picture, in [0, 1)."""
    return np.asarray(generator.random(count), np.float64)


def write_pictures(folder: Path, ids: pa.Array, looks: Floats, share: float, seed: int) -> pa.Array:
    """Draw the pictures of that share of the ads below `folder`; the column that names them, null for the others."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    shown = np.random.default_rng([seed, _SEED]).random(len(looks)) < share
    names: list[str | None] = []
    for number, (ad_id, hue) in enumerate(zip(ids.to_pylist(), looks, strict=True)):
        if not shown[number]:
            names.append(None)
            continue
        name = f"{FOLDER}/{ad_id}.png"
        names.append(name)
        _save(_pixels(float(hue), np.random.default_rng([seed, _SEED, number])), folder / name)
    return pa.array(names, pa.string())


def write_encoder(folder: Path) -> None:
    """A small vision transformer with random weights, always the same: its vectors tell pictures apart untrained."""
    import torch
    from safetensors.torch import save_file
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=SIDE, patch_size=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = ViTModel(config, add_pooling_layer=False)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2,
        "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _pixels(hue: float, generator: np.random.Generator) -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3): a ground of one hue, brighter here and darker there, and up to three grey boxes."""
    ground = np.array(colorsys.hsv_to_rgb(hue, 0.75 + 0.2 * generator.random(), 0.75 + 0.2 * generator.random()))
    light = 1 + 0.15 * (np.linspace(-1, 1, SIDE)[:, None, None] * generator.choice([-1.0, 1.0]))
    cells = np.broadcast_to(ground, (SIDE, SIDE, 3)) * light
    for _ in range(int(generator.integers(0, 4))):
        top, left = generator.integers(0, SIDE - 10, 2)
        height, width = generator.integers(6, 16, 2)
        cells[top : top + height, left : left + width] = generator.random()
    noisy = cells + generator.normal(0, 0.02, cells.shape)
    return np.asarray(np.clip(noisy, 0, 1) * 255, np.uint8)


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, "PNG")
