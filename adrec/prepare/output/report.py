"""A manifest as tables and sentences for people."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from adrec.schema import SPLITS

_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("rows", lambda split: f"{split['rows']:,}"),
    ("impressions", lambda split: f"{split['impressions']:,}"),
    ("requests", lambda split: f"{split['requests']:,}"),
    ("clicks", lambda split: f"{split['clicks']:,}"),
    ("click rate", lambda split: "-" if split["click_rate"] is None else f"{split['click_rate']:.2%}"),
    ("first (UTC)", lambda split: _minute(split["first"]) if split["first"] else "-"),
    ("last (UTC)", lambda split: _minute(split["last"]) if split["last"] else "-"),
    ("users", lambda split: f"{split['users']:,}"),
    ("  also in train", lambda split: f"{split['shared_users']:,}" if "shared_users" in split else ""),
    ("  cold, of rows", lambda split: f"{split['cold_user_rows']:.1%}" if "cold_user_rows" in split else ""),
    ("ads", lambda split: f"{split['ads']:,}"),
    ("  also in train", lambda split: f"{split['shared_ads']:,}" if "shared_ads" in split else ""),
    ("  cold, of rows", lambda split: f"{split['cold_ad_rows']:.1%}" if "cold_ad_rows" in split else ""),
)


def render_manifest(output: Path, manifest: dict[str, Any]) -> Iterator[RenderableType]:
    """The table of splits, then what was found about histories, rejected rows and privacy."""
    table = Table(title=str(output), title_justify="left")
    table.add_column("")
    splits = {name: manifest["splits"][name] for name in SPLITS if name in manifest["splits"]}
    for name in splits:
        table.add_column(name, justify="right", no_wrap=True)
    for label, show in _ROWS:
        if label == "click rate" and manifest.get("implicit"):  # of what was drawn: no rate of anything
            label, show = "negatives drawn", lambda split: f"{split['rows'] - split['clicks']:,}"
        if label != "impressions" or "impressions" in manifest:  # of a log of counts
            table.add_row(label, *(show(split) for split in splits.values()))
    yield table
    yield (
        f"{manifest['rows']:,} rows, {manifest['clicks']:,} clicks, {manifest['users']:,} users, {manifest['ads']:,} ads, "
        f"{manifest['texts']:,} distinct texts"
    )
    yield from _history(manifest["history"])
    yield from _resolved(manifest)
    yield from _immature(manifest)
    if manifest["unlisted_users"]:
        yield f"{manifest['unlisted_users']:,} users are not in the users table: they have their clicks only."
    if manifest["privacy"]:
        yield from _privacy(manifest["privacy"])


def _history(history: dict[str, Any]) -> Iterator[str]:
    if not history["requests"]:
        return
    source = "the given column" if history["source"] == "given" else "earlier clicks in the log"
    yield (
        f"histories from {source}: {history['empty']:,} of {history['requests']:,} requests have none, "
        f"{history['cut']:,} were cut to the newest clicks"
    )
    if history["items"]:
        known = 1 - history["unknown_items"] / history["items"]
        yield f"ids in histories: {history['items']:,}, {known:.1%} of them are known ads"


def _immature(manifest: dict[str, Any]) -> Iterator[str]:
    """Labels of training rows that came after the training part; those of validation rows matter to a refit only."""
    for label, counts in manifest.get("immature", {}).get("train", {}).items():
        if counts["rows"]:
            yield (
                f"{counts['rows']:,} of {counts['of']:,} {label}s of training rows happened at or after "
                f"{_minute(min(manifest['cuts'].values()))} UTC, where the next part begins: training reads them as 0"
            )


def _resolved(manifest: dict[str, Any]) -> Iterator[str]:
    impressions = manifest["source_rows"]["impressions"]
    unknown = sum(item["rows"] for item in manifest["rejected"]["reasons"] if item["reason"] == "is no ad's ad_id")
    yield f"ids in impressions: {impressions['rows']:,}, {1 - unknown / impressions['rows']:.1%} of them are known ads"
    for label, counts in manifest["source_rows"].items():
        if counts["rejected"]:
            yield f"{counts['rejected']:,} of {counts['rows']:,} rows of the {label} are rejected: see rejected.parquet"


def _privacy(privacy: dict[str, Any]) -> Iterator[str]:
    if "forgotten" in privacy:
        yield f"{privacy['forgotten']['users']:,} forgotten users are left out"
    if "k" not in privacy:
        return
    before, after = privacy["before"], privacy["after"]
    yield (
        f"{privacy['k']}-anonymity in {', '.join(privacy['columns'])}: smallest group {before['smallest']:,} before, "
        f"{after['smallest']:,} after; {before['values'] - after['values']:,} values emptied"
    )
    for column, found in privacy.get("sensitive", {}).items():
        yield f"{column} in these groups: {found['l']}-diverse, {found['t']:.3f}-close"


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")
