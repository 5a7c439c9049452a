"""The examples in docstrings of every module are true."""

import doctest
import importlib
from pathlib import Path

import pytest

import adrec

ROOT = Path(adrec.__file__).parent
MODULES = [
    ".".join(("adrec", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for file in sorted(ROOT.rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0 and outcome.failed == 0


def test_the_metrics_are_among_them():
    assert {"adrec.metrics.ranking", "adrec.metrics.classification", "adrec.metrics.off_policy"} <= set(MODULES)
