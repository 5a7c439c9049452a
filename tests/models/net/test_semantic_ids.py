"""Codes of texts: what residual k-means gives, that cold ads share them, and that the whole cycle does."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from worlds import make_world, word_encoder

from adrec.bundle import open_bundle
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.arrays import places
from adrec.data.prepared import open_prepared
from adrec.inference.packing import unpack
from adrec.models.net.semantic_ids import FAR, SemanticIds, fit_centres
from adrec.stages.training import finetune
from adrec.terminal import Terminal
from adrec.training.click_data import load_click_data
from adrec.training.click_encoder import open_text_encoder, text_reader


def planted(seed=0, ads=300):
    """Four far groups of five near ones each; the group and the place within it."""
    rng = np.random.default_rng(seed)
    coarse, fine = 10 * rng.normal(size=(4, 6)), rng.normal(size=(5, 6))
    group, place = rng.integers(0, 4, ads), rng.integers(0, 5, ads)
    return (coarse[group] + fine[place] + rng.normal(0, 0.02, (ads, 6))).astype(np.float32), group, place


def test_the_first_code_is_the_group_and_the_second_the_place_in_it():
    vectors, group, place = planted()
    centres = fit_centres(vectors[:200], levels=2, codes=4, seed=0)
    ids = SemanticIds(text_width=6, levels=2, codes=4, width=8)
    ids.centres.copy_(torch.from_numpy(centres))
    codes = ids.ids(torch.from_numpy(vectors)).numpy()
    assert len(np.unique(np.stack([group, codes[:, 0]]), axis=1).T) == 4, "one code a group, unseen ads among them"
    pairs = {(*key,): set() for key in np.stack([group, place], 1)}
    for key, code in zip(np.stack([group, place], 1), codes, strict=True):
        pairs[(*key,)].add((*code,))
    assert all(len(found) == 1 for found in pairs.values()), "like texts share all their codes"
    nearest = np.square(vectors[:, None] - centres[0][None]).sum(-1).argmin(1)
    left = vectors - centres[0][nearest]
    second = np.square(left[:, None] - centres[1][None]).sum(-1).argmin(1)
    np.testing.assert_array_equal(codes, np.stack([nearest, second], 1))


def test_a_vector_is_the_sum_of_its_codes_and_a_blank_text_has_none():
    torch.manual_seed(0)
    vectors, _, _ = planted()
    ids = SemanticIds(text_width=6, levels=2, codes=4, width=8)
    ids.centres.copy_(torch.from_numpy(fit_centres(vectors, levels=2, codes=4, seed=0)))
    text = torch.from_numpy(vectors[:9]).clone()
    text[3] = 0
    first, second = ids.ids(text).T
    expected = ids.table.weight[first] + ids.table.weight[4 + second]
    expected[3] = 0
    torch.testing.assert_close(ids(text), expected)


def test_fewer_texts_than_codes():
    vectors = np.repeat(planted()[0][:3], 2, axis=0)
    centres = fit_centres(vectors, levels=3, codes=8, seed=0)
    ids = SemanticIds(text_width=6, levels=3, codes=8, width=4)
    ids.centres.copy_(torch.from_numpy(centres))
    assert len(torch.unique(ids.ids(torch.from_numpy(vectors)), dim=0)) == 3
    unlike = torch.from_numpy(np.concatenate([-vectors, 1e-3 * vectors]))  # no vector of training's is near
    taken = ids.ids(torch.from_numpy(vectors)).unique(dim=0)
    assert all((codes == taken[:, 0]).any() for codes in ids.ids(unlike)[:, 0]), "a code that something was learned for"
    assert not fit_centres(np.zeros((4, 6), np.float32), levels=2, codes=3, seed=0).any()


@pytest.mark.filterwarnings("error")
def test_rounding_makes_no_further_codes():
    """Ads of few words: what two levels leave of them is nothing, but for the last bits."""
    rng = np.random.default_rng(1)
    words, ads = rng.normal(size=(6, 12)).astype(np.float32), np.array([rng.choice(6, 3, replace=False) for _ in range(12)])
    vectors = words[ads].mean(1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centres = fit_centres(vectors, levels=3, codes=8, seed=42)
    assert np.abs(centres[2][centres[2] < FAR]).max() < 1e-6 and len(np.unique(centres[2], axis=0)) == 2


def test_they_need_a_frozen_encoder():
    for text in ({}, {"reference": "package:x/y", "train": "lora"}):
        with pytest.raises(ValidationError, match=r"model\.semantic_ids: are codes of a frozen encoder's vectors"):
            FinetuneConfig.model_validate({"prepared": "p", "output": "o", "model": {"semantic_ids": {}}, "text": text})


def test_a_bundle_keeps_them_and_the_next_goes_on_from_them(tmp_path):
    """Fitted to training's ads alone; the codes of another day are those of the bundle it starts from, whatever its ads."""
    world = make_world(tmp_path / "prepared", requests=150, users=20)
    settings = {
        "prepared": world.path,
        "device": "cpu",
        "text": {"reference": str(word_encoder(tmp_path / "encoder")), "cache": str(tmp_path / "cache")},
        "model": {"width": 8, "hidden": [8], "semantic_ids": {"levels": 2, "codes": 6}},
        "baselines": {"names": []},
        "training": {"epochs": 1, "batch_rows": 256, "loggers": []},
        "recall_requests": 0,
    }
    networks = []
    for output, more in (("a", {}), ("b", {"start_from": tmp_path / "a", "seed": 7})):
        config = FinetuneConfig.model_validate({**settings, **more, "output": tmp_path / output})
        finetune.run(config, Terminal(quiet=True))
        networks.append(unpack(open_bundle(tmp_path / output)).model)
    config = FinetuneConfig.model_validate({**settings, "output": tmp_path / "c"})
    prepared = open_prepared(world.path)
    data = load_click_data(config, prepared, text_reader(config, open_text_encoder(config, prepared)), Terminal(quiet=True))
    shown = np.unique(data.train.ad_index)
    vectors = data.collate.ad_texts(shown).vectors.numpy()
    assert sorted(places(data.seen_ads.ids, data.ads.ids)) == shown.tolist()
    centres = networks[0].ad_encoder.semantic.centres
    assert torch.equal(centres, torch.from_numpy(data.centres)) and centres.any()
    first = np.square(vectors[:, None] - data.centres[0][None]).sum(-1)
    assert first.min(1).mean() < 0.5 * np.square(vectors - vectors.mean(0)).sum(1).mean()
    assert torch.equal(networks[1].ad_encoder.semantic.centres, centres)
