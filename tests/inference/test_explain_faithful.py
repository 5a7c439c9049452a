"""Explanations of whole runs are faithful: what they name moves the model more than chance, and in the sample it is the topic.

They need bundles of `make demo`, or of configs/mind, in `runs/` (or in $ADREC_RUNS).
"""

import os
from pathlib import Path

import pytest
from faithful import measure

from adrec.data.examples import load_examples
from adrec.data.prepared import open_prepared
from adrec.inference.explain.explainer import Explainer, titles_of
from adrec.inference.predictor import Predictor

RUNS = Path(os.environ.get("ADREC_RUNS", Path(__file__).resolve().parents[2] / "runs"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("sample", 200), ("mind", 200)])
def test_what_is_named_strongest_moves_the_logit_most(name, rows):
    run = RUNS / name
    if not (run / "bundle" / "bundle.json").exists():
        pytest.skip(f"{run} holds no bundle: run configs/{name} first")
    prepared = open_prepared(run / "prepared")
    predictor = Predictor.load(run / "bundle", device="cpu")
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    limit = predictor.packed.config.model.user.max_history
    examples = load_examples(prepared, "test", rows=20_000, max_history=limit)
    explainer = Explainer(predictor, catalogs, titles_of(prepared.ads()))
    found = measure(predictor, catalogs, examples, explainer, rows=rows, sample=name == "sample")
    assert found["words"][1] > 0 and found["clicks"][1] > 0  # the 95 % intervals exclude 0
    assert found["confirmed for"][0] >= 0.95 and found["confirmed for"][1] >= 200
    assert found["confirmed against"][0] >= 0.95
    if name == "sample":
        assert found["topic among three"][0] >= 0.8
