"""The built-in sample as a log that grows by a file a day, with small configs of preprocess, finetune and daily beside it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from adrec.config.data.sample import SampleConfig
from adrec.stages.data import sample
from adrec.terminal import Terminal

FINETUNE = {
    "model": {"width": 16, "hidden": [16]},
    "training": {"epochs": 3, "batch_rows": 256, "learning_rate": 4.0e-3, "loggers": []},
    "baselines": {"names": []},
}
DAYS = 10
DAY = np.timedelta64(86_400_000_000, "us")


def split_into_days(rows: pa.Table, count: int) -> list[pa.Table]:
    """The rows in order of time as `count` days of about as many requests each, every request within one day."""
    first = rows.group_by("request_id").aggregate([("shown_at", "min")]).sort_by("shown_at_min")
    places = pc.index_in(rows["request_id"], value_set=first["request_id"].combine_chunks()).to_numpy()
    day = places * count // len(first)
    within = (places - day * len(first) // count) / (len(first) // count + 2) * DAY.astype(np.int64)
    moments = np.datetime64("2026-03-01", "us") + day * DAY + within.astype("timedelta64[us]")
    column = rows.schema.get_field_index("shown_at")
    moved = rows.set_column(column, "shown_at", pa.array(moments, pa.timestamp("us", "UTC")))
    return [moved.filter(pa.array(day == number)).sort_by("shown_at") for number in range(count)]


class DailyWorld:
    """Days of a log in `days`; `arrive` puts the next ones where preprocess looks."""

    def __init__(
        self, folder: Path, *, impressions: int = 6000, finetune: dict | None = None, daily: dict | None = None
    ) -> None:
        self.folder = folder
        whole = folder / "whole"
        sample.run(SampleConfig(output=whole, impressions=impressions), Terminal(quiet=True))
        rows = pq.read_table(whole / "impressions")
        rows = rows.drop_columns([name for name in rows.column_names if name in {"true_probability", "converted_at"}])
        self.days = split_into_days(rows, DAYS)
        self.log = folder / "log"
        self.log.mkdir()
        self.arrived = 0
        tables = {name: {"files": str(whole / f"{name}.parquet")} for name in ("ads", "users")}
        self._write(
            "preprocess",
            {
                "output": str(folder / "prepared"),
                "source": {"format": "tables", "impressions": {"files": str(self.log)}, **tables},
                "split": {"method": "rolling"},
                "append": "fast",
                "tokenizer": {"kind": "none"},
                "counters": ["usual"],
                "features": {
                    "impressions": {"numeric": [{"column": "counter_*"}]},
                    "ads": {"categorical": ["category", "advertiser_id"]},
                    "users": {"categorical": ["region"]},
                },
            },
        )
        self._write("finetune", {"prepared": "nowhere", "output": "nowhere", **FINETUNE, **(finetune or {})})
        self.registry = folder / "registry"
        names = {name: f"{name}.yaml" for name in ("preprocess", "finetune")}
        self.config = self._write("daily", {**names, "registry": "registry", "report": False, **(daily or {})})

    def arrive(self, days: int = 1) -> None:
        """The files of the next days."""
        for _ in range(days):
            pq.write_table(self.days[self.arrived], self.log / f"day-{self.arrived:02d}.parquet")
            self.arrived += 1

    def _write(self, name: str, settings: dict) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path
