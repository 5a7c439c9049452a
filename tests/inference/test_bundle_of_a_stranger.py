"""A bundle from a stranger: it runs no code, reads nothing outside itself, and takes no more memory than its files can fill."""

import json
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from test_golden import made, resealed  # noqa: F401

from adrec.bundle import open_bundle
from adrec.config.data.preprocess import TextSettings
from adrec.errors import AdrecError, BundleError
from adrec.inference.packing import pack, unpack
from adrec.inference.predictor import Predictor

BOMB = 1 << 30


def load(bundle):
    return Predictor.load(bundle, device="cpu", cache=bundle.parent / "cache")


def changed_json(name, change):
    def apply(folder):
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return apply


def test_a_config_that_claims_a_larger_network_than_its_weights_is_refused_before_memory_is_taken(made, tmp_path):  # noqa: F811
    def claim(folder):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["model"] |= {"width": 65_536, "hidden": [65_536, 65_536]}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    with pytest.raises(BundleError, match="not written by this version"):
        load(resealed(made / "bundle", tmp_path / "large", claim))


def test_a_vocabulary_that_no_weights_have_is_refused(made, tmp_path):  # noqa: F811
    def claim(values):
        for shape in ("impressions", "ads", "users"):
            sizes = values["dimensions"][shape]["cardinalities"]
            values["dimensions"][shape]["cardinalities"] = [BOMB for _ in sizes] or [BOMB]

    with pytest.raises(BundleError):
        load(resealed(made / "bundle", tmp_path / "wide", changed_json("schema.json", claim)))


def test_a_calibration_that_is_another_is_told_by_the_golden_scores(made, tmp_path):  # noqa: F811
    def lift(values):
        for fitted in values.values():
            for key, value in fitted.items():
                if isinstance(value, float):
                    fitted[key] = value + 0.7
                elif isinstance(value, list) and value and isinstance(value[0], float):
                    fitted[key] = [min(number + 0.2, 1.0) for number in value]

    with pytest.raises(BundleError, match="differ by .* in their probabilities"):
        load(resealed(made / "bundle", tmp_path / "lifted", changed_json("calibration.json", lift)))


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_trees_cut_short_are_refused(made, tmp_path, share):  # noqa: F811
    def cut(folder):
        file = folder / "baselines" / "lightgbm" / "trees.txt"
        text = file.read_text()
        file.write_text(text[: int(len(text) * share)])

    try:
        load(resealed(made / "bundle", tmp_path / "cut", cut))
    except BundleError as refused:
        assert "\n" not in str(refused)


def test_stop_words_of_the_owner_travel_with_the_bundle_and_no_other_file_is_read(made, tmp_path):  # noqa: F811
    words = tmp_path / "my words.txt"
    words.write_text("alpha\nbeta\n")
    packed = unpack(open_bundle(made / "bundle"))
    assert packed.config.text.cache is None
    object.__setattr__(packed, "text", TextSettings(extra_stop_words=words))

    def own(folder):
        shutil.rmtree(folder)
        folder.mkdir()
        pack(folder, packed, {})

    bundle = resealed(made / "bundle", tmp_path / "own", own)
    words.unlink()
    text = unpack(open_bundle(bundle)).text
    assert text.extra_stop_words is not None and text.extra_stop_words.read_text() == "alpha\nbeta\n"
    assert str(tmp_path) not in (bundle / "schema.json").read_text()

    def reach(values):
        values["text"]["extra_stop_words"] = "/etc/passwd"

    with pytest.raises(BundleError, match="names a file outside the bundle"):
        unpack(open_bundle(resealed(bundle, tmp_path / "reach", changed_json("schema.json", reach))))


def test_code_in_the_encoder_is_not_run(made, tmp_path, monkeypatch):  # noqa: F811
    """`auto_map` names Python that Hugging Face's loader would run where it is trusted, or where somebody answers `y`."""
    ran = tmp_path / "ran"

    def trap(folder):
        encoder = folder / "encoder"
        config = {"model_type": "stranger", "auto_map": {"AutoConfig": "m.C", "AutoModel": "m.M", "AutoTokenizer": "m.T"}}
        (encoder / "config.json").write_text(json.dumps(config))
        settings = json.loads((encoder / "adrec.json").read_text()) if (encoder / "adrec.json").exists() else {}
        (encoder / "adrec.json").write_text(json.dumps({**settings, "kind": "transformer"}))
        save_file({"x": np.zeros(1, np.float32)}, encoder / "model.safetensors")
        (encoder / "tokenizer.json").write_text("{}")

    monkeypatch.setattr("builtins.input", lambda *_: "y")
    bundle = resealed(made / "bundle", tmp_path / "trap", trap)
    with pytest.raises(AdrecError):
        load(bundle)
    (bundle / "encoder" / "m.py").write_text(f"open({str(ran)!r}, 'w')")
    with pytest.raises(AdrecError):
        load(bundle)
    assert not ran.exists()


def test_arrays_that_unpack_to_more_than_their_file_can_mean_are_refused(made, tmp_path):  # noqa: F811
    def bomb(folder):
        (folder / "hybrid").mkdir(exist_ok=True)
        archive = zipfile.ZipFile(folder / "hybrid" / "arrays.npz", "w", zipfile.ZIP_DEFLATED)
        with archive, archive.open("x.npy", "w", force_zip64=True) as handle:
            np.lib.format.write_array_header_1_0(handle, {"descr": "|u1", "fortran_order": False, "shape": (BOMB,)})
            for _ in range(BOMB >> 24):
                handle.write(bytes(1 << 24))

    with pytest.raises(BundleError, match="more than"):
        load(resealed(made / "bundle", tmp_path / "bomb", bomb))


def test_a_table_that_claims_more_rows_than_it_has_bytes_is_refused(made, tmp_path):  # noqa: F811
    def bomb(folder):
        rows = 20_000_000
        same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array(["ad"]))
        numbers = pa.array(np.zeros(rows, np.int64))
        table = pa.table({"kind": same, "id": same, "impressions": numbers, "clicks": numbers})
        pq.write_table(table, folder / "seen.parquet", compression="zstd")

    with pytest.raises(BundleError, match="more than it can hold"):
        load(resealed(made / "bundle", tmp_path / "rows", bomb))


def test_random_bytes_anywhere_are_refused_in_a_line(made, tmp_path):  # noqa: F811
    random = np.random.default_rng(0)
    names = [name for name in open_bundle(made / "bundle").manifest["files"] if not name.endswith("metrics.json")]
    for number, name in enumerate(names):

        def spoil(folder, name=name):
            content = bytearray((folder / name).read_bytes())
            for place in random.integers(0, len(content), 3):
                content[place] = int(random.integers(0, 256))
            (folder / name).write_bytes(bytes(content[: int(random.integers(1, len(content) + 1))]))

        try:
            load(resealed(made / "bundle", tmp_path / str(number), spoil))
        except AdrecError as refused:
            assert "\n" not in str(refused), (name, str(refused))


def test_weights_of_another_kind_are_refused(made, tmp_path):  # noqa: F811
    def other(folder):
        weights = load_file(folder / "model.safetensors")
        name = sorted(weights)[0]
        save_file({**weights, name: np.zeros((3, 3), np.float32)}, folder / "model.safetensors")

    with pytest.raises(BundleError, match="not written by this version"):
        load(resealed(made / "bundle", tmp_path / "other", other))
