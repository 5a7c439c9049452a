"""The registry: a folder of bundles, a record of each, and which is the champion. A kill at any moment leaves it whole.

registry/
  registry.json      what was promoted and rolled back, in order: the one truth of who is champion
  champion           link to the champion's bundle, replaced in one step; follows registry.json
  bundles/NAME/      bundles as `adrec finetune` writes them
  records/NAME.json  when, of which data, from which bundle, its figures and the gate's verdict
  judged/NAME/       scores of the test part by both bundles, and the evaluation with its report
"""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adrec.bundle import MANIFEST, Bundle, open_bundle, write_json
from adrec.data.disk.writing import write_aside
from adrec.errors import DataError

FILE = "registry.json"
CHAMPION = "champion"
FORMAT = 1


class Registry:
    """A registry folder. Every change is one file renamed into place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, str]] = []
        if (path / FILE).exists():
            try:
                self.events = list(json.loads((path / FILE).read_text(encoding="utf-8"))["events"])
            except (OSError, ValueError, KeyError, TypeError):
                raise DataError(f"{path / FILE}: cannot be read. Restore it from a backup, or name another registry.") from None
            self._link()  # where a run was killed between the two

    @classmethod
    def open(cls, path: Path) -> "Registry":
        """An existing registry. Raises DataError where there is none."""
        if not (path / FILE).is_file():
            raise DataError(f"{path}: no registry ({FILE} is missing). Run 'adrec daily' to make one.")
        return cls(path)

    @property
    def stack(self) -> list[str]:
        """Champions whose rule has not been taken back, the present one last."""
        names: list[str] = []
        for event in self.events:
            if event["what"] == "promoted":
                names.append(event["name"])
            else:
                del names[-1:]
        return names

    @property
    def champion(self) -> str | None:
        """The name of the bundle to serve; None before the first."""
        return self.stack[-1] if self.stack else None

    def was_promoted(self, name: str) -> bool:
        """Whether it has ever been the champion."""
        return any(event["what"] == "promoted" and event["name"] == name for event in self.events)

    def bundle(self, name: str) -> Path:
        """Where the bundle of that name lies, or will."""
        return self.path / "bundles" / name

    def judged(self, name: str) -> Path:
        """Folder of what judged it."""
        return self.path / "judged" / name

    def has_bundle(self, name: str) -> bool:
        """Whether its bundle is there, whole."""
        return (self.bundle(name) / MANIFEST).is_file()

    def start(self) -> None:
        """Make the folder a registry, where it is none."""
        if not (self.path / FILE).exists():
            self._save()

    def records(self) -> list[dict[str, Any]]:
        """All records, oldest first."""
        files = sorted((self.path / "records").glob("*.json"))
        return sorted((json.loads(file.read_text(encoding="utf-8")) for file in files), key=lambda record: record["made"])

    def record(self, name: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the record of a bundle."""
        made = {"name": name, "made": _now(), **facts}
        with write_aside(self.path / "records" / f"{name}.json") as aside:
            write_json(made, aside)
        return made

    def promote(self, name: str, why: str) -> None:
        """Make `name` the champion. Raises DataError where it has no whole bundle."""
        self._checked(name)
        if name != self.champion:
            self.events.append({"what": "promoted", "name": name, "at": _now(), "why": why})
            self._save()
        self._link()

    def roll_back(self) -> tuple[str, str]:
        """Make the champion before this one the champion again; the names of this one and of that.

        Raises DataError where there is none.
        """
        stack = self.stack
        if len(stack) < 2:
            raise DataError(f"{self.path}: there is no champion before this one to go back to.")
        self._checked(stack[-2])
        self.events.append({"what": "rolled back", "name": stack[-1], "at": _now(), "why": f"back to {stack[-2]}"})
        self._save()
        self._link()
        return stack[-1], stack[-2]

    def prune(self, keep: int) -> list[str]:
        """Remove all but the newest `keep` bundles, the champion and the two before it; the names of those removed."""
        names = [record["name"] for record in self.records()]
        safe = {*names[-keep:], *self.stack[-3:]}
        removed = []
        for name in names:
            if name not in safe and self.bundle(name).is_dir():
                (self.bundle(name) / MANIFEST).unlink(missing_ok=True)  # half of a bundle is none
                shutil.rmtree(self.bundle(name))
                shutil.rmtree(self.judged(name), ignore_errors=True)
                removed.append(name)
        return removed

    def _checked(self, name: str) -> Bundle:
        if "/" in name or not self.has_bundle(name):
            known = sorted(folder.name for folder in (self.path / "bundles").glob("*") if self.has_bundle(folder.name))
            raise DataError(f"{self.path}: has no bundle '{name}'. Bundles: {', '.join(known) or 'none'}.")
        return open_bundle(self.bundle(name))

    def _save(self) -> None:
        with write_aside(self.path / FILE) as aside:
            write_json({"registry_format": FORMAT, "events": self.events}, aside)

    def _link(self) -> None:
        link, champion = self.path / CHAMPION, self.champion
        if champion is None:
            return
        target = Path("bundles") / champion
        if link.is_symlink() and link.readlink() == target:
            return
        aside = self.path / f".{CHAMPION}.{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(target, target_is_directory=True)
        os.replace(aside, link)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
