"""Trees of a stranger: what is right predicts what it predicted, what is wrong is refused before the native parser sees it."""

import subprocess
import sys

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.models.baselines.tabular.tree_text import checked_trees


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    numbers = random.normal(size=(800, 3))
    numbers[::17, 1] = np.nan
    return np.c_[numbers, random.integers(0, 90, (800, 2))].astype(np.float32)


@pytest.fixture(scope="module")
def trained(rows):
    signal = rows[:, 0] + 2 * (rows[:, 3] % 3 == 0) + (rows[:, 4] % 5 == 0)
    clicks = (signal + np.random.default_rng(1).normal(size=len(rows)) > 1).astype(int)
    table = lightgbm.Dataset(rows, clicks, categorical_feature=[3, 4])
    options = {"objective": "binary", "num_leaves": 15, "min_data_in_leaf": 5, "max_cat_to_onehot": 1, "verbose": -1}
    return lightgbm.train({**options, "min_data_per_group": 5}, table, 12)


def test_the_same_trees_predict_the_same_bits(trained, rows):
    text = trained.model_to_string()
    assert "cat_threshold" in text  # else half of the format is not looked at
    again = lightgbm.Booster(model_str=checked_trees(text))
    assert np.array_equal(again.predict(rows, raw_score=True), trained.predict(rows, raw_score=True))
    odd = np.full((3, rows.shape[1]), 1e9, np.float32)
    odd[1] = np.nan
    assert np.array_equal(again.predict(odd, raw_score=True), trained.predict(odd, raw_score=True))
    assert checked_trees(checked_trees(text)) == checked_trees(text)
    assert again.feature_importance().tolist() == trained.feature_importance().tolist()


def test_a_single_leaf_is_a_tree():
    flat = lightgbm.train({"objective": "regression", "verbose": -1}, lightgbm.Dataset(np.zeros((30, 1)), np.arange(30) % 2), 2)
    again = lightgbm.Booster(model_str=checked_trees(flat.model_to_string()))
    assert np.allclose(again.predict(np.zeros((2, 1))), flat.predict(np.zeros((2, 1))))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("left_child=", "left_child=0 "),
        ("num_leaves=15", "num_leaves=999999999"),
        ("num_cat=", "num_cat=7"),
        ("split_feature=", "split_feature=99"),
        ("max_feature_idx=4", "max_feature_idx=3"),
        ("leaf_value=", "leaf_value=nan "),
        ("is_linear=0", "is_linear=1"),
        ("num_class=1", "num_class=3"),
        ("objective=binary", "objective=binar"),
        ("sigmoid:1", "sigmoid:0"),
    ],
)
def test_a_wrong_place_is_refused(trained, before, after):
    text = trained.model_to_string()
    assert before in text
    with pytest.raises(ValueError, match=r".+"):
        checked_trees(text.replace(before, after, 1))


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.77, 0.9])
def test_half_a_text_is_refused_or_has_whole_trees_alone(trained, share, rows):
    text = trained.model_to_string()
    try:
        safe = checked_trees(text[: int(len(text.partition("end of trees")[0]) * share)])
    except ValueError:
        return
    assert np.isfinite(lightgbm.Booster(model_str=safe).predict(rows)).all()


_PROGRAM = """
import sys, numpy, lightgbm
from adrec.models.baselines.tabular.tree_text import checked_trees
rows = numpy.load(sys.argv[1])
for text in open(sys.argv[2], encoding="utf-8").read().split("\\x00"):
    try:
        safe = checked_trees(text)
    except ValueError:
        continue
    lightgbm.Booster(model_str=safe).predict(rows)
print("alive")
"""


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_mutation_kills_the_process(trained, rows, tmp_path_factory, seed):
    """60 spoiled texts a process: digits changed, pieces cut, doubled and swapped."""
    random, text = np.random.default_rng(seed), trained.model_to_string()
    spoiled = []
    for _ in range(60):
        letters = list(text)
        for _ in range(int(random.integers(1, 6))):
            place, kind = int(random.integers(0, len(letters))), int(random.integers(0, 4))
            if kind == 0:
                letters[place] = random.choice(list("0123456789-. =\n"))
            elif kind == 1:
                del letters[place : place + int(random.integers(1, 40))]
            elif kind == 2:
                letters[place:place] = letters[place : place + int(random.integers(1, 40))]
            else:
                numbers = [at for at, letter in enumerate(letters) if letter.isdigit()]
                letters[int(random.choice(numbers))] = random.choice(list("0123456789"))
        spoiled.append("".join(letters))
    folder = tmp_path_factory.mktemp("spoiled")
    np.save(folder / "rows.npy", rows)
    (folder / "texts").write_text("\x00".join(spoiled), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder / "rows.npy"), str(folder / "texts")], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("alive\n"), (done.returncode, done.stderr[-500:])
