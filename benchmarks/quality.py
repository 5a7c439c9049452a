"""Do the figures that the docs give still hold? Runs the commands of `expected.json`, set by set, and compares.

`make bench-quality` runs the built-in sample (5 to 10 minutes of two quiet cores), `make nightly` each set whose data is there.
A figure in README or docs that stands before `<!--=KEY-->` is the one of that key: a fast test holds the pages to that file,
and this program holds the file to the code. Ends with 1 where a figure is off by more than its tolerance.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXPECTED = Path(__file__).with_name("expected.json")


def main() -> None:
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(expected['sets'])}; all by default")
    parser.add_argument("--root", type=Path, default=ROOT, help="where configs/, data/ and runs/ lie")
    parser.add_argument("--judge-only", action="store_true", help="run nothing: compare what an earlier run left")
    options = parser.parse_args()
    unknown = set(options.sets) - set(expected["sets"])
    if unknown:
        parser.error(f"no set {', '.join(sorted(unknown))}; known: {', '.join(expected['sets'])}")
    off = 0
    for name in options.sets or expected["sets"]:
        settings = expected["sets"][name]
        if not (options.root / settings["needs"]).exists():
            print(f"{name}: left out, {settings['needs']} is not here")
            continue
        for command in () if options.judge_only else settings["commands"]:
            print(f"{name}: adrec {command}", flush=True)
            subprocess.run([sys.executable, "-m", "adrec", *shlex.split(command), "--quiet"], cwd=options.root, check=True)
        result = json.loads((options.root / settings["result"]).read_text(encoding="utf-8"))
        for line, holds in judge(result, name, expected["figures"]):
            print(line)
            off += not holds
    if off:
        cure = "Mend the cause, or the docs and benchmarks/expected.json, and say why in docs/log.md"
        sys.exit(f"error: {off} figures no longer hold. {cure}.")


def judge(result: dict[str, Any], name: str, figures: dict[str, Any]) -> list[tuple[str, bool]]:
    """A line for each figure of the set `name`, and whether it holds, given an evaluation's metrics.json."""
    lines = []
    for key, figure in figures.items():
        if key.split(".")[0] != name:
            continue
        found = measured(result, figure, figures)
        holds = found is not None and abs(found - figure["value"]) <= figure["tolerance"]
        shown = "missing" if found is None else f"{found:.4f}"
        lines.append((f"{'ok ' if holds else 'OFF'} {key}: {shown}, expected {figure['value']} ± {figure['tolerance']}", holds))
    return lines


def measured(result: dict[str, Any], figure: dict[str, Any], figures: dict[str, Any]) -> float | None:
    """A figure as `result` has it; None where it has none. A share is what is gained over chance, an AUC of one half."""
    if "share" in figure:
        part, whole = (measured(result, figures[figure[key]], figures) for key in ("share", "of"))
        return None if part is None or whole is None else (part - 0.5) / (whole - 0.5)
    task = next(iter(result["tasks"].values()))
    place = task["runs"].get(figure["run"], {})
    for column, value in figure.get("slice", {}).items():
        place = next((part for part in task["slices"] if (part["column"], part["value"]) == (column, value)), {})
    value = place.get("metrics", {}).get(figure["metric"], {}).get("value")
    return None if value is None else float(value)


if __name__ == "__main__":
    main()
