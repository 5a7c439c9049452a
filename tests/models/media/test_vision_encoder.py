"""Vision encoders of every kind give one vector a picture, the same after saving, and each picture is encoded once."""

import numpy as np
import pyarrow as pa
import pytest
import vision

from adrec.data.media.pictures import Pictures
from adrec.errors import DataError
from adrec.models.media.media_vectors import MediaVectors, text_vectors
from adrec.models.media.vision_encoder import load_vision_encoder


@pytest.mark.parametrize(
    "kind", ["small_vit", "small_dinov2", "small_convnext", "small_efficientnet", "small_clip", "small_siglip"]
)
def test_a_picture_is_a_vector_whatever_stands_beside_it(tmp_path, kind):
    encoder = load_vision_encoder(str(getattr(vision, kind)(tmp_path / "encoder")))
    shown = [
        Pictures().decode(vision.png(colour, size=size)) for colour, size in (([1, 0, 0], (24, 20)), ([0, 0, 1], (90, 31)))
    ]
    both = encoder.encode(shown)
    assert both.shape == (2, encoder.dimension) and np.isfinite(both).all()
    assert np.allclose(encoder.encode(shown[1:])[0], both[1], atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 1e-3
    encoder.save(tmp_path / "saved")
    again = load_vision_encoder(str(tmp_path / "saved"))
    assert again.fingerprint == encoder.fingerprint and np.array_equal(again.encode(shown), both)


def test_clip_is_what_transformers_says(tmp_path):
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    folder = vision.small_clip(tmp_path / "clip")
    encoder, model = load_vision_encoder(str(folder)), CLIPModel.from_pretrained(folder).eval()
    picture = Pictures().decode(vision.png([0.1, 0.9, 0.3]))
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=[picture], return_tensors="pt")["pixel_values"]
    tokens = AutoTokenizer.from_pretrained(folder)(["red shoes", "coffee"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        expected = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    own, words = encoder.encode([picture]), encoder.texts(["red shoes", "coffee"])
    for found, reference in ((own, expected.image_embeds), (words, expected.text_embeds)):  # which are of unit length
        assert np.allclose(found / np.linalg.norm(found, axis=1, keepdims=True), reference.numpy(), atol=1e-5)
    assert np.isnan(text_vectors(encoder, pa.array(["", None, "coffee"]), cache=None, keep=False)).any(axis=1).tolist() == [
        True, True, False,
    ]  # fmt: skip


def test_siglip_is_what_transformers_says_of_texts_filled_up(tmp_path):
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel

    folder = vision.small_siglip(tmp_path / "siglip")
    encoder, model = load_vision_encoder(str(folder)), SiglipModel.from_pretrained(folder).eval()
    picture, words = Pictures().decode(vision.png([0.1, 0.9, 0.3])), ["red shoes", "coffee"]
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=[picture], return_tensors="pt")["pixel_values"]
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def expected(**filled):
        # Without a mask, as its authors do: filling is read like words.
        ids = tokenizer(words, return_tensors="pt", **filled)["input_ids"]
        with torch.inference_mode():
            return model(input_ids=ids, pixel_values=pixels)

    right, unfilled = expected(padding="max_length", max_length=vision.LONGEST_TEXT), expected(padding=True)
    own, found = encoder.encode([picture]), encoder.texts(words)
    assert np.allclose(found, encoder.texts(words[::-1])[::-1], atol=1e-6)  # whatever stands beside it
    units = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (own, found)]
    assert np.allclose(units[0], right.image_embeds.numpy(), atol=1e-5)
    assert np.allclose(units[1], right.text_embeds.numpy(), atol=1e-5)
    assert np.abs(units[1] - unfilled.text_embeds.numpy()).max() > 1e-2  # so the filling does count


def test_each_picture_is_encoded_once_and_what_is_damaged_says_why(tmp_path, monkeypatch):
    encoder = load_vision_encoder(str(vision.small_vit(tmp_path / "encoder")))
    calls = []
    real = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda shown: calls.extend(shown) or real(shown))
    one, other = vision.png([1, 0, 0]), vision.png([0, 1, 0])
    column = pa.array([one, None, other, one, b"<svg/>", one[:150]], pa.binary())
    reader = MediaVectors(encoder, Pictures(), cache=tmp_path / "cache")
    found = reader(column)
    assert len(calls) == 2 and np.array_equal(found[0], found[3])
    assert np.isnan(found).any(axis=1).tolist() == [False, True, False, False, True, True]
    assert [(item.row, item.reason.split()[0]) for item in reader.set_aside] == [(4, "is"), (5, "is")]
    again = MediaVectors(encoder, Pictures(), cache=tmp_path / "cache")
    assert np.array_equal(again(column), found, equal_nan=True) and len(calls) == 2
    assert [item.reason for item in again.set_aside] == [item.reason for item in reader.set_aside]


def test_what_is_no_vision_encoder_is_told(tmp_path):
    with pytest.raises(DataError, match="no such encoder folder"):
        load_vision_encoder(str(tmp_path / "none"))
    folder = vision.small_vit(tmp_path / "encoder")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match="holds no preprocessor_config.json"):
        load_vision_encoder(str(folder))
