"""Settings of a training that meet in pairs: what each may be, what cannot be together, and rows that hold every pair once.

A covering design of strength two (Cohen et al. 1997): most faults of an interaction need two settings, and a few dozen rows
hold all pairs where all combinations would be billions. A new setting is a line of FACTORS; the rows follow.
"""

import random
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.data.sample import SampleConfig
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import new_language_model
from adrec.models.text.text_encoder import TextEncoder
from adrec.models.text.word_vectors import WordTokenizer, WordVectors
from adrec.stages.data import preprocess, sample
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
FACTORS: dict[str, tuple[str, ...]] = {
    "log": ("tables", "pseudonyms", "new users", "row by row", "clicks alone", "wide"),
    "text": ("none", "words", "words and lexical", "frozen", "lora", "full"),
    "networks": ("one", "ensemble of one", "best of two", "ensemble of two"),
    "hybrid": ("none", "single", "average", "weighted", "stack", "auto"),
    "tasks": ("click", "conversion", "both", "both, esmm", "all, ple"),
    "delay": ("none", "wait", "dfm", "es_dfm", "fnw", "window"),
    "ids": ("none", "ads", "both", "hashed"),
    "user": ("soft", "found by category", "found by hash", "next click", "hstu", "gru and local", "global"),
    "interaction": ("mlp", "dot", "dcn"),
    "fusion": ("concatenation", "gated", "cross_attention", "late"),
    "graph": ("neighbours", "shared", "none"),
    "loss": ("bce", "listwise", "bpr", "in_batch", "negatives", "negative_rate", "next_category"),
    "calibration": ("auto", "none", "temperature", "platt", "isotonic"),
    "start": ("none", "same log", "another log"),
    "switch": ("none", "position_bias", "semantic_ids", "taste", "refit", "streamed"),
}
_OF_TABLES = ("tables", "pseudonyms", "new users", "row by row")
_MEMBERS: dict[str, list[str]] = {
    "none": ["popularity"],
    "single": ["lightgbm", "tfidf"],
    "average": ["lightgbm", "logistic"],
    "weighted": ["conditional_logit", "item_cf"],
    "stack": ["lightgbm", "smoothed_ctr"],
    "auto": ["logistic", "content", "ease"],
}
_TASKS = {
    "click": ["click"], "conversion": ["conversion"], "both": ["click", "conversion"],
    "both, esmm": ["click", "conversion"], "all, ple": ["click", "conversion", "dwell_seconds"],
}  # fmt: skip
_USER: dict[str, dict[str, Any]] = {
    "soft": {"parts": ["soft"]},
    "found by category": {"parts": ["target"], "search": "category", "search_top": 3},
    "found by hash": {"parts": ["target", "soft"], "search": "hashed", "search_top": 3},
    "next click": {"parts": ["sasrec"]},
    "hstu": {"parts": ["hstu", "mean"]},
    "gru and local": {"parts": ["gru", "local"]},
    "global": {"parts": ["global"]},
}


def goes(row: dict[str, str]) -> bool:
    """Whether the settings of `row`, which may be a few of them, go together; what does not is refused by name elsewhere."""
    text, log, tasks, switch = row.get("text"), row.get("log"), row.get("tasks"), row.get("switch")
    if text in {"none", "lora", "full"} and (switch == "semantic_ids" or row.get("user") == "found by hash"):
        return False  # both read vectors of a frozen encoder
    if text == "none" and switch == "taste":
        return False
    if text in {"lora", "full"} and row.get("networks", "").startswith("ensemble"):
        return False
    if row.get("delay", "none") != "none" and (log in {"wide", "clicks alone"} or tasks == "click"):
        return False  # needs the moment of a label
    if row.get("delay") in {"dfm", "es_dfm", "fnw"} and row.get("loss") in {"negatives", "negative_rate"}:
        return False
    if log == "clicks alone":
        plain = tasks in {None, "click"} and row.get("calibration") in {None, "auto", "none"}
        return plain and switch not in {"position_bias", "taste"}
    return not (log == "wide" and tasks == "all, ple")


def pairs_of(row: dict[str, str]) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    """Every two settings of a row, in the order of FACTORS."""
    return set(combinations([(name, row[name]) for name in FACTORS if name in row], 2))


@cache
def wanted() -> frozenset[tuple[tuple[str, str], tuple[str, str]]]:
    """Every two settings that go together."""
    every = [[(name, value) for value in values] for name, values in FACTORS.items()]
    return frozenset((one, two) for a, b in combinations(every, 2) for one in a for two in b if goes(dict((one, two))))


@cache
def rows() -> tuple[dict[str, str], ...]:
    """Rows that hold every pair of `wanted`, greedily: of some that hold a missing one the one with the most missing."""
    rng, missing, made = random.Random(0), set(wanted()), []
    while missing:
        left = sorted(missing)
        drawn = [_completed(dict(rng.choice(left)), missing, rng) for _ in range(6)]
        best = max((row for row in drawn if row is not None), key=lambda row: len(pairs_of(row) & missing), default=None)
        if best is None:
            raise ValueError(f"no row can hold {left[0]}: tell `goes` why")
        missing -= pairs_of(best)
        made.append(best)
    return tuple(made)


def _completed(row: dict[str, str], missing: set[Any], rng: random.Random) -> dict[str, str] | None:
    """The row with a value for each other factor, each the one that meets most missing pairs; None where none goes."""
    for name in rng.sample([name for name in FACTORS if name not in row], len(FACTORS) - len(row)):
        allowed = [value for value in FACTORS[name] if goes({**row, name: value})]
        if not allowed:
            return None
        gain = {value: len(pairs_of({**row, name: value}) & missing) + rng.random() for value in allowed}
        row = {**row, name: max(allowed, key=gain.__getitem__)}
    return row


class Meeting:
    """A tiny world of Chinese and English ads with bids, slots, conversions, links and vectors, prepared in several ways."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.raw = folder, folder / "raw"
        sample.run(SampleConfig(output=self.raw, impressions=1000, graph=0.9, seed=5), QUIET)
        rng = np.random.default_rng(0)
        for name, column in (("ads", "photo"), ("users", "taste")):
            table = pq.read_table(self.raw / f"{name}.parquet")
            vectors = [None if rng.random() < 0.2 else rng.normal(size=6).tolist() for _ in range(len(table))]
            pq.write_table(table.append_column(column, pa.array(vectors, pa.list_(pa.float32()))), self.raw / f"{name}.parquet")
        log = pq.read_table(self.raw / "impressions")
        clicks = log.filter(pc.equal(log["click"], 1)).select(["user_id", "ad_id", "shown_at", "query", "scenario"])
        pq.write_table(clicks, self.raw / "clicks.parquet")
        ads = pq.read_table(self.raw / "ads.parquet").select(["ad_id", "title", "description", "category", "bid"])
        users = pq.read_table(self.raw / "users.parquet").select(["user_id", "age_band"])
        own = log.drop_columns(["converted_at", "true_probability", "dwell_seconds"]).join(ads, "ad_id").join(users, "user_id")
        own.to_pandas().to_csv(self.raw / "wide.csv", index=False, encoding="gbk", errors="replace")
        (folder / "key").write_text("a secret of the tests, thirty-two bytes or more")

    def prepared(self, log: str) -> Path:
        """The prepared folder of a kind of log."""
        output = self.folder / "prepared" / log.replace(" ", "_")
        if not output.exists():
            preprocess.run(PreprocessConfig.model_validate({**self._preprocess(log), "output": str(output)}), QUIET)
        return output

    def _preprocess(self, log: str) -> dict[str, Any]:
        common = {"tokenizer": {"kind": "none"}, "threads": 1, "counters": ["usual"], "history": {"max_clicks": 10}}
        time = {"method": "time", "valid_fraction": 0.2, "test_fraction": 0.2}
        rows = {"numeric": ["counter_*"], "categorical": ["scenario"], "calendar": {}}
        if log == "wide":
            source = {"format": "tables", "impressions": {"files": str(self.raw / "wide.csv"), "encoding": "gbk"}}
            features = {"impressions": rows, "ads": {"categorical": ["category"], "numeric": ["bid"]}}
            return {**common, "source": source, "features": features, "split": time, "history": {"max_skipped": 5}}
        of = {name: {"files": str(self.raw / f"{name}.parquet")} for name in ("ads", "users", "entities", "links", "ad_links")}
        source = {
            "format": "tables", "ads": of.pop("ads"), "users": of.pop("users"), "tables": of,
            "impressions": {"files": str(self.raw / ("clicks.parquet" if log == "clicks alone" else "impressions"))},
        }  # fmt: skip
        features = {
            "impressions": rows,
            "ads": {
                "numeric": ["bid", {"column": "price", "transform": "quantile", "missing_indicator": True}],
                "categorical": ["category", "language"], "hashed": [{"column": "advertiser_id", "buckets": 64}],
                "lists": [{"column": "graph", "paths": 2, "max_items": 8}], "vectors": ["photo"],
            },
            "users": {"categorical": ["age_band"], "lists": ["interests"], "vectors": ["taste"]},
        }  # fmt: skip
        settings = {**common, "source": source, "features": features, "split": time}
        if log == "clicks alone":
            return {**settings, "negatives": {"per_click": 3}}
        settings["history"] = {"max_clicks": 10, "max_skipped": 5, "converted_at": "converted_at"}
        fractions = {"test_fraction": 0.2, "valid_fraction": 0.2}
        return (
            settings
            | {
                "tables": {},
                "pseudonyms": {"privacy": {"pseudonymise": True, "mask_contacts": True, "key_file": str(self.folder / "key")}},
                "new users": {"split": {"method": "user", **fractions}},
                "row by row": {"split": {"method": "random", **fractions}},
            }[log]
        )

    def encoder(self, text: str) -> str | None:
        """Random word vectors of the world's words, or a tiny random transformer over a tokenizer of its texts."""
        if text == "none":
            return None
        folder = self.folder / ("words" if text.startswith("words") else "transformer")
        if not folder.exists() and folder.name == "words":
            tables = [pq.read_table(self.prepared("tables") / f"{name}.parquet") for name in ("ads", "users")]
            words = sorted({word for table in tables for line in table["segmented"].to_pylist() for word in line.split()})
            vectors = WordVectors.from_array(np.random.default_rng(1).normal(size=(len(words), 12)).astype(np.float32))
            TextEncoder(backbone=vectors, tokenizer=WordTokenizer(words), dimension=12).save(folder)
        elif not folder.exists():
            settings = {**self._preprocess("tables"), "tokenizer": {"kind": "wordpiece", "vocab_size": 600}}
            made = self.folder / "tokenized"
            preprocess.run(PreprocessConfig.model_validate({**settings, "output": str(made)}), QUIET)
            tokenizer = load_tokenizer(made / "tokenizer")
            new_language_model("tiny", tokenizer, max_tokens=32).save(folder, tokenizer)
        return str(folder)

    def finetune(self, row: dict[str, str], output: Path) -> dict[str, Any]:
        """The finetune config of a row."""
        text, tasks, switch, loss = row["text"], _TASKS[row["tasks"]], row["switch"], row["loss"]
        esmm = row["tasks"] in {"both, esmm", "all, ple"}
        terms = {"listwise": ["listwise", "bce"], "bpr": ["bpr", "bce"], "in_batch": ["bce", "in_batch"]}.get(loss, ["bce"])
        sampled = {"negatives": 2, "negative_rate": 0.5, "next_category": 0.2}
        skipped = switch == "taste" or (row["user"] == "global" and row["log"] != "clicks alone")
        model = {
            "width": 8, "hidden": [8], "interaction": row["interaction"], "fusion": row["fusion"], "graph": row["graph"],
            "user": {**_USER[row["user"]], "heads": 2, "max_history": 10, "skipped": skipped},
            "sharing": "ple" if row["tasks"].endswith("ple") else "shared", "experts": 2,
            "identities": {"none": [], "ads": ["ads"]}.get(row["ids"], ["ads", "users"]),
            **({"identity_rows": 16, "identity_optimizer": "rowwise"} if row["ids"] == "hashed" else {}),
            "position_bias": switch == "position_bias", "taste": switch == "taste",
            "semantic_ids": {"levels": 2, "codes": 8} if switch == "semantic_ids" else None,
        }  # fmt: skip
        start = {"same log": row["log"], "another log": "wide" if row["log"] != "wide" else "tables"}.get(row["start"])
        return {
            "prepared": str(self.prepared(row["log"])), "output": str(output), "model": model, "device": "cpu",
            "text": {
                "reference": self.encoder(text), "cache": str(self.folder / "cache"),
                "train": text if text in {"lora", "full"} else "frozen", "lexical": 4 if text.endswith("lexical") else 0,
            },
            "seeds": 2 if row["networks"].endswith("two") else 1, "ensemble": row["networks"].startswith("ensemble"),
            "hybrid": {"kind": row["hybrid"], "also": ["item_cf"] if row["hybrid"] == "weighted" else []},
            "baselines": {"names": _MEMBERS[row["hybrid"]]},
            "tasks": [{"name": name, "after": "click" if esmm and name == "conversion" else None} for name in tasks],
            "delay": {"window_hours": 24} if row["delay"] == "window" else {"method": row["delay"], "wait_hours": 6},
            "loss": {
                "terms": [{"kind": kind} for kind in [*terms, *["next_click"] * (row["user"] == "next click")]],
                **({loss: sampled[loss]} if loss in sampled else {}),
            },
            "calibration": row["calibration"], "refit": switch == "refit", "recall_requests": 5,
            "start_from": None if start is None else str(self.started(start)),
            "training": {
                "epochs": 1, "batch_rows": 256, "learning_rate": 5e-3, "loggers": [],
                **({"in_memory_rows": 0} if switch == "streamed" else {}),
            },
        }  # fmt: skip

    def started(self, log: str) -> Path:
        """A plain bundle of a kind of log, to go on from."""
        from adrec.config.training.finetune import FinetuneConfig
        from adrec.stages.training import finetune

        output = self.folder / "start" / log.replace(" ", "_")
        if not output.exists():
            plain = {name: values[0] for name, values in FACTORS.items()} | {"log": log, "text": "words"}
            finetune.run(FinetuneConfig.model_validate(self.finetune(plain, output)), QUIET)
        return output
