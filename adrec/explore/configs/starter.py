"""Write the configs that follow from a guess and the recipe: commented YAML that validates and runs as it stands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adrec.explore.configs.facts import facts_of
from adrec.explore.configs.preprocess_yaml import NEGATIVES, Commented, Paths, features_of_guess, source_of_guess, template_of
from adrec.explore.configs.recipe import Facts, Recipe, recipe
from adrec.explore.configs.yaml_text import written
from adrec.explore.guessing.findings import Guess

_ENGLISH = {"en": 1.0}
_KNOWN_FORMATS = {
    "mind": Facts(
        rows=150_000, clicks=6_000, ads=50_000, users=5_000, rows_a_request=37, texts=50_000, languages=_ENGLISH,
        has_category=True, has_description=True,
    ),
    "recbole": Facts(rows=100_000, clicks=50_000, ads=2_000, users=1_000, texts=2_000, languages=_ENGLISH, has_category=True),
    "open_bandit": Facts(rows=10_000, clicks=50, ads=100),
}  # fmt: skip
"""What such files usually are: they are recognised by their names and not read."""
_HEADS = {
    "preprocess": "Raw logs and ad copy -> prepared folder. Written by 'adrec init': check what it guessed.",
    "pretrain": "Teaches a small language model the words of your ads, interests and queries.",
    "finetune": "Trains the click model, calibrates it, and trains every baseline beside it.",
    "score": "Click probabilities of the test rows. For new rows name `impressions` (and `ads`, `users`) instead of `split`.",
    "evaluate": "How good the scores are: metrics with intervals, slices, calibration, report.html.",
    "rank": "The best ads of the whole catalogue for each test request.",
    "serve": "Scores, ranks and explains over HTTP on http://127.0.0.1:8080. docs/using/serve.md lists the calls.",
    "daily": "Every day: new files beside the old ones -> a bundle that was judged beside yesterday's. docs/how-to/daily.md.",
    "tune": "Searches settings of finetune; best.yaml in the output is a finetune config.",
}


def write_configs(
    folder: Path, *, runs: Path, final: Path, guess: Guess | None, source: dict[str, Any] | None
) -> tuple[list[str], list[str]]:
    """Write the configs into `folder`; paths in them are relative to `final`, where they will lie.

    `source` is the source section of a known format; `guess` the guess about plain tables. One of them is given.
    Returns the names of the files, and what the recipe has to say.
    """
    facts = facts_of(guess) if guess is not None else _KNOWN_FORMATS.get(str((source or {})["format"]), Facts(0, 0))
    made, paths = recipe(facts), Paths(runs, final)
    sections: dict[str, Mapping[str, Any] | None] = {
        "pretrain": None if made.pretrain is None else {**_ends(paths, "prepared", "encoder"), **made.pretrain},
        "finetune": _finetune(made, paths),
        "score": {"bundle": paths("bundle"), "prepared": paths("prepared"), "split": "test", "output": paths("scored.parquet")},
        "evaluate": {
            "scored": paths("scored.parquet"), "output": paths("evaluation"),
            "ads": paths("prepared"), "training": paths("bundle"),
        },
        "rank": _rank(made, facts, paths),
        "serve": {"bundle": paths("bundle"), "prepared": paths("prepared"), "store": paths("store.sqlite"), **made.serve},
        "daily": _daily(paths) if facts.has_time and not facts.is_clicks_alone else None,
        "tune": {"base": "finetune.yaml", "output": paths("tune"), **made.tune},
    }  # fmt: skip
    texts = {"preprocess": _preprocess(guess, source, made, paths)}
    for name, values in sections.items():
        if values is not None:
            behind = {key.removeprefix(f"{name}."): text for key, text in made.why.items() if key.startswith(f"{name}.")}
            texts[name] = written(values, behind)
    for name, lines in texts.items():
        head = [f"# {_HEADS[name]}", f"# Every key: adrec config schema {name}"]
        (folder / f"{name}.yaml").write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    return list(texts), made.notes


def _daily(paths: Paths) -> dict[str, Any]:
    """The newest day judges; vocabularies and scalers stay those that yesterday's weights know."""
    return {
        "preprocess": "preprocess.yaml", "prepare": {"split": {"method": "rolling"}, "append": "fast"},
        "prepared": paths("daily/prepared"), "finetune": "finetune.yaml", "registry": paths("registry"),
    }  # fmt: skip


def _preprocess(guess: Guess | None, source: dict[str, Any] | None, made: Recipe, paths: Paths) -> list[str]:
    to = Commented()
    to.behind |= {key.removeprefix("preprocess."): text for key, text in made.why.items() if key.startswith("preprocess.")}
    values = to.values
    values["output"] = paths("prepared")
    if guess is not None:
        values["source"] = source_of_guess(guess, paths, to)
    else:
        values["source"] = {key: value if key == "format" else paths.to(value) for key, value in (source or {}).items()}
    values["split"] = _split_by_parts(guess, to) or made.preprocess.get("split", {"method": "time"})
    values["text"] = {"ad_template": template_of(guess)}
    to.behind["text.ad_template"] = "what the language model reads of an ad"
    values["tokenizer"] = made.preprocess["tokenizer"]
    named = guess.names["impressions"] if guess is not None else {}
    moments = {name: name for name in ("clicked_at", "converted_at") if name in named}
    if "history" in made.preprocess or moments:
        values["history"] = {**made.preprocess.get("history", {}), **moments}
        if moments:
            to.above["history"] = ["A label counts from its own moment on: what came later is not known before."]
    if guess is not None and guess.shape == "clicks":
        values["negatives"] = dict(NEGATIVES)
        to.above["negatives"] = ["Every row is a click: what was not clicked is drawn from the ads available at that moment."]
    if "counters" in made.preprocess:
        counters = made.preprocess["counters"]
        values["counters"] = counters if guess is None or guess.shape != "clicks" else ["usual"]
        to.above["counters"] = ["Counts of what happened before each impression: clicks and rates of ad, user, category, ..."]
    own = made.preprocess.get("features", {})
    values["features"] = features_of_guess(guess, own, to) if guess is not None else _known_features(own)
    to.above["features"] = ["Inputs of the models beside text and history; statistics come from the training rows alone."]
    values["privacy"] = {"pseudonymise": False}
    to.behind["privacy.pseudonymise"] = "true replaces user ids by a keyed hash (key in $ADREC_PRIVACY_KEY)"
    values["validation"] = {"max_rejected_fraction": 0.0}
    to.behind["validation.max_rejected_fraction"] = "share of broken rows that may be set aside in rejected.parquet"
    return written(values, {key: text for key, text in to.behind.items() if _is_in(values, key)}, to.above)


def _known_features(own: Mapping[str, Any]) -> dict[str, Any]:
    ads = own.get("ads", {})
    return {**own, "ads": {"categorical": ["category"], **ads}}


def _split_by_parts(guess: Guess | None, to: Commented) -> dict[str, Any] | None:
    """Where files are named for the parts, they are the split."""
    parts = guess.tables["impressions"].parts if guess is not None else {}
    if not {"train", "test"} <= set(parts.values()):
        return None
    to.behind["split"] = "your files name the parts"
    split: dict[str, Any] = {"method": "column", "column": "source_file"}
    split |= {part: [file for file, of in parts.items() if of == part] for part in ("train", "valid", "test")}
    if guess is not None and "shown_at" in guess.names["impressions"]:
        split["in_time_order"] = False
        to.behind["split.in_time_order"] = "true refuses training rows later than test rows"
    return split


def _ends(paths: Paths, prepared: str, output: str) -> dict[str, str]:
    return {"prepared": paths(prepared), "output": paths(output)}


def _finetune(made: Recipe, paths: Paths) -> dict[str, Any]:
    settings = {**_ends(paths, "prepared", "bundle"), **made.finetune}
    if made.pretrain is not None:
        settings["text"] = {"reference": paths("encoder"), **settings.get("text", {})}
    return settings


def _rank(made: Recipe, facts: Facts, paths: Paths) -> dict[str, Any]:
    policy = dict(made.serve["policies"]["default"])
    policy["limits"] = {"budget": facts.has_bid}
    where = {"bundle": paths("bundle"), "prepared": paths("prepared"), "split": "test", "output": paths("ranked.parquet")}
    return {**where, "policies": {"default": policy}}


def _is_in(values: Mapping[str, Any], dotted: str) -> bool:
    node: Any = values
    for key in dotted.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return False
        node = node[key]
    return True
