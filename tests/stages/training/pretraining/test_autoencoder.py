"""The autoencoder: codes start as principal components, keep neighbours, and depend on nothing but the ad."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from corpora import make_corpus

from adrec.config.base import load_config
from adrec.config.training.pretrain import PretrainConfig
from adrec.data.features import FeatureSet
from adrec.models.text.autoencoder import AdAutoencoder, AdInputs
from adrec.models.text.text_encoder import TextEncoder
from adrec.models.text.word_vectors import WordTokenizer, WordVectors, words_of
from adrec.specs import CategorySpec, FeatureSpec, NumericSpec
from adrec.stages.training.pretrain import run
from adrec.terminal import Terminal


def inputs(rng, count=40):
    return AdInputs(
        torch.randn(count, 12, generator=rng), torch.randn(count, 2, generator=rng), torch.randint(0, 5, (count, 1))
    )


def test_codes_start_as_principal_components_and_have_unit_length():
    rng = torch.Generator().manual_seed(0)
    ads = inputs(rng)
    model = AdAutoencoder(text_dimension=12, numeric=2, cardinalities=[5], width=4)
    directions = torch.linalg.qr(torch.randn(12, 4, generator=rng)).Q.T.contiguous()
    mean = torch.randn(12, generator=rng) * 0.1
    model.start_from(directions, mean)
    expected = (torch.nn.functional.normalize(ads.text, dim=1) - mean) @ directions.T
    codes = model(ads)
    assert torch.allclose(codes, torch.nn.functional.normalize(expected, dim=1), atol=1e-5)
    assert torch.allclose(codes[:3], model(AdInputs(*(part[:3] for part in ads))), atol=1e-6)


def test_training_lowers_every_error():
    torch.manual_seed(0)
    ads = inputs(torch.Generator().manual_seed(1))
    model = AdAutoencoder(text_dimension=12, numeric=2, cardinalities=[5], width=8)
    before = [float(error.detach()) for error in model.errors(ads)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        sum(model.errors(ads)).backward()
        optimizer.step()
    after = [float(error.detach()) for error in model.errors(ads)]
    assert all(end < 0.7 * start for end, start in zip(after, before, strict=True))


def test_the_command_writes_a_code_for_each_ad(tmp_path):
    prepared = make_corpus(tmp_path / "prepared", count=80)
    ads = pq.read_table(prepared / "ads.parquet")
    ads = ads.append_column("price", pa.array(np.linspace(1, 9, 80)))
    pq.write_table(ads, prepared / "ads.parquet")
    fitted = FeatureSet.fit(
        FeatureSpec(numeric=(NumericSpec("price"),), categorical=(CategorySpec("language"),)), ads.to_batches()
    )
    (prepared / "features.json").write_text(json.dumps({"ads": fitted.to_json()}))
    words = sorted({word for text in ads["title"].to_pylist() for word in words_of(text)})
    vectors = np.random.default_rng(0).normal(size=(len(words), 16)).astype(np.float32)
    TextEncoder(backbone=WordVectors.from_array(vectors), tokenizer=WordTokenizer(words), dimension=16, max_tokens=32).save(
        tmp_path / "words"
    )
    config = load_config(
        None,
        PretrainConfig,
        [f"prepared={prepared}", f"output={tmp_path / 'codes'}", "model.kind=autoencoder",
         f"model.reference={tmp_path / 'words'}",
         "model.width=6", "training.epochs=20"],
    )  # fmt: skip
    result = run(config, Terminal(quiet=True))
    codes = pq.read_table(tmp_path / "codes" / "codes.parquet")
    assert codes["ad_id"].equals(ads["ad_id"])
    lengths = np.linalg.norm(np.stack(codes["code"].to_numpy()), axis=1)
    assert np.allclose(lengths, 1, atol=1e-5)
    assert 0.3 < result.recall <= 1 and set(result.errors) == {"text", "numeric", "categorical"}
    assert list(result.render())
