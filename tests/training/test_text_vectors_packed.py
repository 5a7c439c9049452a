"""Texts laid out several to a row get the vectors that each has alone."""

import numpy as np
import pytest
import torch
from corpora import make_corpus, texts

from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import new_language_model
from adrec.models.text.pooling import Pool
from adrec.training.objectives.texts import TokenTable, text_vectors


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "attention"])
def test_vectors_do_not_depend_on_the_layout(tmp_path, pooling):
    tokenizer = load_tokenizer(make_corpus(tmp_path / "prepared", count=60) / "tokenizer")
    torch.manual_seed(0)
    model = new_language_model("tiny", tokenizer, max_tokens=16).eval()
    pool = Pool(pooling, model.dimension)
    if pool.query is not None:
        torch.nn.init.normal_(pool.query)
    table = TokenTable([*texts(70)[0], "roses"], tokenizer, max_tokens=16)
    rows = table.rows(np.random.default_rng(1).permutation(71))
    packed = table.packed(rows)
    assert packed.mask.sum() == sum(map(len, rows))
    assert packed.mask.sum() / packed.tokens.numel() > 0.8
    with torch.no_grad():
        together = text_vectors(model, pool, packed)
        for row, vector in zip(rows, together, strict=True):
            alone = model.backbone(input_ids=torch.from_numpy(row)[None]).last_hidden_state
            assert torch.allclose(pool(alone, torch.ones(1, len(row)))[0], vector, atol=1e-5)
