"""A loaded bundle: score, rank and explain as `adrec score`, `rank` and `explain` do, over frames. It is loaded once."""

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from adrec.api.frames import Kind, from_arrow, kind_of, spooled, to_arrow
from adrec.api.settings import config_of
from adrec.bundle import open_bundle, trusting
from adrec.config.inference.explain import ExplainConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.data.disk.tables import parquet_schema, read_table
from adrec.data.prepared import Prepared
from adrec.errors import AdrecError, DataError
from adrec.inference.predictor import Predictor
from adrec.inference.score_source import open_source
from adrec.inference.scored import with_scores
from adrec.stages.inference import explain, rank
from adrec.terminal import Terminal


def load(
    bundle: str | Path,
    *,
    prepared: str | Path | None = None,
    device: str = "auto",
    trusted_keys: Sequence[str | Path] = (),
) -> "Model":
    """Open and check a bundle folder.

    `prepared` is the log whose ads, users and clicks stand behind what is asked; None takes the folder that the bundle was
    trained on, where it is still what it was. `trusted_keys`: public keys, one of which must have signed the bundle. Raises
    BundleError where the bundle is incomplete, altered or of another version, or none of them has.
    """
    return Model(bundle, prepared=prepared, device=device, trusted_keys=trusted_keys)


class Model:
    """A bundle in memory. `bundle` and `prepared` are paths."""

    def __init__(
        self,
        bundle: str | Path,
        *,
        prepared: str | Path | None = None,
        device: str = "auto",
        trusted_keys: Sequence[str | Path] = (),
    ) -> None:
        self.bundle = str(Path(bundle).expanduser().resolve())
        self.device = device
        with trusting([Path(key).expanduser() for key in trusted_keys]):
            self.predictor = Predictor.load(Path(self.bundle), device=device)
        self.prepared = str(Path(prepared).expanduser().resolve()) if prepared is not None else self._own_prepared()

    def __repr__(self) -> str:
        """What it is, in a line."""
        return f"adrec.Model({self.bundle!r}, prepared={self.prepared!r})"

    def score(self, frame: Any = None, *, ads: Any = None, users: Any = None, history: Any = None, **settings: Any) -> Any:
        """Click probabilities of the rows of `frame`, in its order: its columns, and `logit`, `score`, cold flags, baselines.

        `frame` holds the columns of the log that the bundle learned from, no labels needed; a path will do. `ads`, `users` and
        `history` (clicks) replace what the prepared folder knows, as frames or paths. Without a frame, `split="test"` scores
        rows of the prepared folder. `settings` are keys of `adrec score`. The result is of the frame's kind (pandas for a
        path), with the index of a pandas frame. Raises DataError naming column and row.
        """
        with tempfile.TemporaryDirectory(prefix="adrec-frames-") as name:
            folder = Path(name)
            tables = _tables(folder, impressions=frame, ads=ads, users=users, history=history)
            common = {"bundle": self.bundle, "output": str(folder / "unused.parquet"), "device": self.device}
            config = config_of(ScoreConfig, None, {**self._behind(settings), **common, **tables, **settings})
            source = open_source(config, self.predictor)
            parts = []
            for chunk in source.chunks():
                scores = self.predictor.score_examples(
                    chunk.examples, source.catalogs, batch_rows=config.batch_rows, baselines=config.baselines
                )
                parts.append(with_scores(chunk.table, chunk.examples, source.catalogs, scores))
        return from_arrow(
            pa.concat_tables(parts), kind_of(frame) or "pandas", index=frame.index if kind_of(frame) == "pandas" else None
        )

    def rank(
        self, users: Any = None, *, top_n: int | None = None, ads: Any = None, history: Any = None, **settings: Any
    ) -> Any:
        """The best ads for each user, from the whole catalogue: a row a place, with `rank`, `score`, `reason` and more.

        `users` are identifiers, or a frame (or path) of requests: `user_id` and what else is known (`shown_at`, `query`,
        `scenario`, ...). Without moments it is the end of the prepared log, without a log now; `at` says another one. Users
        that nobody knows get a list too. `settings` are keys of `adrec rank`, such as `policies`, `at`
        or `split`. The result is of the kind of `users`; pandas for identifiers and paths.
        """
        kind: Kind = kind_of(users) or "pandas"
        if isinstance(users, Sequence) and not isinstance(users, str):
            users = pa.table({"user_id": pa.array([str(user) for user in users], pa.string())})
        with tempfile.TemporaryDirectory(prefix="adrec-frames-") as name:
            folder = Path(name)
            tables = _tables(folder, requests=users, ads=ads, history=history)
            common = {"bundle": self.bundle, "output": str(folder / "lists.parquet"), "device": self.device, "top_n": top_n}
            asked = {**self._behind(settings), "recall_requests": 0, **common, **tables, **settings}
            if "requests" in tables and "at" not in settings and not self._names_moments(tables["requests"]):
                asked["at"] = self._end(asked.get("prepared"))
            config = config_of(RankConfig, None, asked)
            rank.run(config, Terminal(quiet=True), self.predictor)
            return from_arrow(read_table(config.output), kind)

    def explain(
        self, frame: Any = None, *, rows: int = 20, ads: Any = None, users: Any = None, history: Any = None, **settings: Any
    ) -> "Explanations":
        """Why the first `rows` rows of `frame` got their scores. Arguments as for `score`; `user_id` and `ad_id` pick rows."""
        with tempfile.TemporaryDirectory(prefix="adrec-frames-") as name:
            folder = Path(name)
            tables = _tables(folder, impressions=frame, ads=ads, users=users, history=history)
            common = {"bundle": self.bundle, "output": str(folder / "unused"), "device": self.device, "rows": rows}
            config = config_of(ExplainConfig, None, {**self._behind(settings), **common, **tables, **settings})
            found = explain.explained(config, self.predictor, Terminal(quiet=True))
        return Explanations(found, kind_of(frame) or "pandas")

    def _names_moments(self, requests: Any) -> bool:
        """Whether a table of requests says when each was; of files, they are left to say so themselves."""
        path = Path(str(requests))
        if path.suffix != ".parquet" or not path.is_file():
            return True
        log = self.predictor.packed.form.tables.get("impressions")
        named = log.input.get("columns", {}).get("shown_at") if log is not None else None
        return bool({"shown_at", named} & set(parquet_schema(path).names))

    @staticmethod
    def _end(prepared: Any) -> str:
        """The moment just behind the last impression of a prepared folder; now without one."""
        if prepared is None:
            return datetime.now(UTC).isoformat()
        last = datetime.fromisoformat(Prepared(Path(prepared)).manifest["last"])
        return (last + timedelta(microseconds=1)).isoformat()

    def _behind(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {"prepared": self.prepared} if self.prepared is not None and "prepared" not in settings else {}

    def _own_prepared(self) -> str | None:
        """The folder that the bundle was trained on, where it lies there still and is the same."""
        folder = self.predictor.packed.config.prepared
        try:
            is_same = Prepared(folder).fingerprint == open_bundle(Path(self.bundle), verify=False).manifest["data_fingerprint"]
        except (AdrecError, OSError, KeyError):
            return None
        return str(folder) if is_same else None


class Explanations:
    """Why rows got their scores, as frames and sentences."""

    def __init__(self, result: explain.ExplainResult, kind: Kind) -> None:
        self.result = result
        self.sentences = [worded.sentence for worded in result.rows]
        explained = [worded.explanation for worded in result.rows]
        named = ("user_id", "ad_id", "title", "score", "logit", "baseline")
        columns = {name: [getattr(one, name) for one in explained] for name in named}
        self.rows = from_arrow(pa.table({**columns, "sentence": self.sentences}), kind)
        """a row an explained row: score, logit, and a sentence"""
        parts = [(number, worded, part) for number, worded in enumerate(result.rows) for part in worded.explanation.parts]
        self.parts = from_arrow(
            pa.table(
                {
                    "row": pa.array([number for number, _, _ in parts], pa.int64()),
                    **{name: [str(getattr(part, name)) for _, _, part in parts] for name in ("kind", "name", "value")},
                    "label": [worded.label(part) for _, worded, part in parts],
                    "contribution": pa.array([part.contribution for _, _, part in parts], pa.float64()),
                }
            ),
            kind,
        )
        """a row a part: of a row, contributions + baseline are the logit"""

    def __repr__(self) -> str:
        """The sentences."""
        return "\n".join(self.sentences)


def _tables(folder: Path, **frames: Any) -> dict[str, Any]:
    """The tables that are given, as paths. Raises DataError for one without rows."""
    found = {}
    for name, frame in frames.items():
        if frame is None:
            continue
        if kind_of(frame) is not None and len(to_arrow(frame, where=name)) == 0:
            raise DataError(f"{name}: has no rows.")
        found[name] = spooled(frame, folder, name)
    return found
