"""Config of `adrec score`: which bundle, which rows, and where histories come from."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from adrec.config.base import ConfigPath, OnDevice, OpensBundle
from adrec.config.cluster import OnCluster
from adrec.config.data.own_tables import OnOwnTables, OwnTable


class RowsConfig(OnOwnTables, OpensBundle):
    """Rows to apply a bundle to: a split of a prepared folder, or tables of the user's own."""

    bundle: ConfigPath
    """Folder made by `adrec finetune`."""
    prepared: ConfigPath | None = None
    """Prepared folder: its `split` is scored, or its ads, users and clicks stand behind the rows of `impressions`."""
    split: Literal["train", "valid", "test"] | None = None
    """Which split of `prepared`; None scores `impressions`."""
    impressions: OwnTable | None = None
    """Rows of your own, in files of any format that preprocess reads, `-` for standard input: the columns of the log that the
    bundle learned from, in its names or the canonical ones (user_id, ad_id, shown_at, ...). No labels are needed."""
    ads: OwnTable | None = None
    """Files of the ads; None takes those of `prepared`, and of a wide log those that the rows describe."""
    users: OwnTable | None = None
    """Files of the users; None takes those of `prepared`, and of a wide log what the rows say of theirs."""
    history: OwnTable | None = None
    """Files of clicks (user_id, ad_id, shown_at, optional click) for rows without a `history` column."""
    cache: ConfigPath | None = None
    """Folder of cached text vectors; None is the user's cache folder."""
    chunk_rows: Annotated[int, Field(ge=1, le=1_000_000_000)] = 65_536
    """Rows in memory at once."""

    @model_validator(mode="after")
    def _rows_named(self) -> "RowsConfig":
        if (self.split is None) == (self.impressions is None):
            raise ValueError("give either `prepared` with a `split`, or `impressions`")
        if self.split is not None and self.prepared is None:
            raise ValueError("`split` needs `prepared`")
        named = [name for name in ("ads", "users", "history") if getattr(self, name) is not None]
        if self.split is not None and named:
            raise ValueError(f"a `split` of `prepared` has its own ads, users and histories; '{named[0]}' is for `impressions`")
        if any(table is not None and table.is_standard_input for table in (self.ads, self.users, self.history)):
            raise ValueError("standard input (`-`) is for `impressions`")
        return self


class ScoreConfig(RowsConfig, OnDevice, OnCluster):
    """Click probabilities for any number of rows, labels not needed. Reads the bundle and rows; writes `output`."""

    output: ConfigPath
    """File to write: the rows' own columns, and logit, score, cold flags, baselines. CSV, TSV or lines of JSON where its name
    ends in .csv, .tsv or .jsonl (also with .gz), else Parquet, which `evaluate` reads; `-` is CSV on standard output."""
    parts: bool = False
    """Write a folder instead of a file: each finished part as it is (`part-000000.parquet`, ...), and `manifest.json` last,
    which names them. For more rows than one file should hold; `evaluate` reads it."""
    onnx: ConfigPath | None = None
    """Folder made by `adrec export` from this bundle: score by onnxruntime in place of torch."""
    onnx_int8: bool = False
    """Take the int8 encoder of `onnx`."""
    batch_rows: Annotated[int, Field(ge=1, le=100_000_000)] = 4096
    """Rows given to the network at once. Changes no score."""
    threads: Annotated[int, Field(ge=1, le=4_096)] | None = None
    """CPU threads; None leaves the choice to torch."""
    baselines: bool = True
    """Add the scores of the bundle's baselines as `baseline_*`."""
    catalogue: Literal["auto", "none", "full"] | Annotated[int, Field(ge=1, le=1_000_000_000)] = "auto"
    """For clicks alone: rank each click among all ads available at its moment (`full`), or among so many drawn at random for
    its request. auto: full up to 20,000 ads, else 1,000, where the bundle learned from clicks alone; else none."""
    catalogue_clicked: Literal["auto", "keep", "drop"] = "auto"
    """Whether ads that the user clicked before are among them. auto: drop where at most 1 % of the log's clicks repeat one."""
    shard_rows: Annotated[int, Field(ge=1, le=1_000_000_000)] = 524_288
    """Rows of a finished part, which a killed run keeps; what workers share out."""
    workers: Annotated[int, Field(ge=1, le=1_024)] = 1
    """Processes, each with the model and the catalogue, that share the parts; one GPU each where there are several. The
    output does not depend on it."""

    @model_validator(mode="after")
    def _parts_have_a_folder(self) -> "ScoreConfig":
        if self.parts and (self.output == Path("-") or self.output.suffix):
            raise ValueError(f"`parts` writes a folder, and `output` is called like a file ('{self.output.name}')")
        return self
