"""examples/efficientnet_lite0.py writes EfficientNet-Lite0: held against a network of plain torch, with random weights."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import vision
from torch import nn

from adrec.data.media.pictures import Pictures
from adrec.models.media.vision_encoder import load_vision_encoder

SCRIPT = Path(__file__).parents[3] / "examples/efficientnet_lite0.py"
STAGES = [  # repeats, kernel, stride, expansion, in, out: table 1 of Tan and Le 2019
    (1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112), (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320),
]  # fmt: skip


def _norm(width):
    return nn.BatchNorm2d(width, eps=1e-3)


class Block(nn.Module):
    """Expansion, depthwise convolution, projection; no squeeze and excitation."""

    def __init__(self, kernel, stride, expansion, before, after):
        super().__init__()
        wide = before * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(before, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv, self._bn1 = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False), _norm(wide)
        self._project_conv, self._bn2 = nn.Conv2d(wide, after, 1, bias=False), _norm(after)
        self.kernel, self.stride, self.is_kept = kernel, stride, stride == 1 and before == after

    def forward(self, x):
        made = nn.functional.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_bn0") else x
        made = nn.functional.relu6(self._bn1(self._depthwise_conv(_padded(made, self.kernel, self.stride))))
        made = self._bn2(self._project_conv(made))
        return made + x if self.is_kept else made


class Lite0(nn.Module):
    """With the names of tensors that the package's file has."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, bias=False), _norm(32)
        blocks = []
        for repeats, kernel, stride, expansion, before, after in STAGES:
            blocks.append(Block(kernel, stride, expansion, before, after))
            blocks += [Block(kernel, 1, expansion, after, after) for _ in range(repeats - 1)]
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        x = nn.functional.relu6(self._bn0(self._conv_stem(_padded(x, 3, 2))))
        for block in self._blocks:
            x = block(x)
        return nn.functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


def _padded(x, kernel, stride):
    """As TensorFlow's `same` pads: the odd cell at the end."""
    size = x.shape[-1]
    more = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return nn.functional.pad(x, [more // 2, more - more // 2] * 2)


@pytest.fixture(scope="module")
def lite0():
    torch.manual_seed(0)
    model = Lite0().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # of no neutral values, so that each tensor counts where it belongs
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.1, 0.5)
    return model


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("efficientnet_lite0", SCRIPT)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_written_folder_reads_pictures_as_the_network_of_the_weights(lite0, script, tmp_path, monkeypatch):
    torch.save(lite0.state_dict(), tmp_path / "weights.pth")
    asked = ["--weights", str(tmp_path / "weights.pth"), "--output", str(tmp_path / "encoder")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *asked])
    script.main()
    encoder = load_vision_encoder(str(tmp_path / "encoder"))
    picture = Pictures().decode(vision.png([0.2, 0.7, 0.4], size=(300, 280)))
    pixels = encoder.processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    shown = np.asarray(picture.resize((274, 256), 3).crop((25, 16, 249, 240)), np.float32)
    assert np.abs(pixels[0].numpy().transpose(1, 2, 0) - (shown - 127) / 128).max() < 0.02
    with torch.inference_mode():
        expected = lite0(pixels).numpy()
    assert expected.std() > 0.05
    np.testing.assert_allclose(encoder.encode([picture]), expected, atol=1e-4)
    with pytest.raises(SystemExit, match="exists"):
        script.main()


def test_other_weights_are_told(lite0, script, tmp_path):
    weights = lite0.state_dict()
    for wrong in ({"layer.weight": torch.zeros(1)}, {"_conv_stem.weight": weights["_conv_stem.weight"]}):
        with pytest.raises(ValueError, match="not the weights of EfficientNet-Lite0"):
            script.write_encoder(wrong, tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
