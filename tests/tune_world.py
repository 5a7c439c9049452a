"""A small prepared folder with the config of a training beside it, to search over, and configs of searches."""

from pathlib import Path
from typing import Any

import yaml
from raw_worlds import prepare, world

from adrec.config.base import load_config
from adrec.config.training.tune import TuneConfig


def make_tune_world(folder: Path) -> Path:
    """Makes `prepared` and `finetune.yaml` in `folder`, and gives it back."""
    world(folder, requests=150)
    prepare(folder)
    base = {
        "prepared": "prepared", "output": "bundle", "model": {"width": 8, "hidden": [8], "user": {"parts": ["soft"]}},
        "training": {"epochs": 2, "batch_rows": 128}, "baselines": {"names": []},
    }  # fmt: skip
    (folder / "finetune.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    return folder


def tune_config(folder: Path, name: str, **settings: Any) -> TuneConfig:
    """A search over `finetune.yaml` of `folder`, which writes there."""
    (folder / f"{name}.yaml").write_text(
        yaml.safe_dump({"base": "finetune.yaml", "output": name, **settings}), encoding="utf-8"
    )
    return load_config(folder / f"{name}.yaml", TuneConfig)
