"""adrec: the whole life of a language-model ad recommender, from raw logs to a server.

From Python (docs/how-to/notebook.md; nothing heavy is imported before it is used):

    import adrec
    adrec.preprocess(config="configs/sample/preprocess.yaml")
    adrec.finetune(config="configs/sample/finetune.yaml", training__epochs=2)
    model = adrec.load("runs/sample/bundle")
    model.score(frame); model.rank(["u1", "u2"], top_n=5); model.explain(frame)
"""

from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "load": "adrec.api.model",
    "Model": "adrec.api.model",
    "preprocess": "adrec.api.stages",
    "finetune": "adrec.api.stages",
    "evaluate": "adrec.api.stages",
    "Result": "adrec.api.stages",
    "AdrecError": "adrec.errors",
}


def __getattr__(name: str) -> Any:
    """What the front door offers, imported when it is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'adrec' has no attribute '{name}'. It offers {', '.join(sorted(_PLACES))}.")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
