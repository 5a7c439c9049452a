"""What `adrec preprocess` wrote, and what a reader of it should know."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from adrec.prepare.output.report import render_manifest


@dataclass(frozen=True)
class PreprocessResult:
    """What was written. `done` is built, appended or unchanged."""

    output: Path
    manifest: dict[str, Any]
    done: str
    why: str = ""
    """why an earlier output was not appended to"""

    def as_dict(self) -> dict[str, Any]:
        """The manifest, without the lists of files, and where it lies."""
        shown = {key: value for key, value in self.manifest.items() if key not in {"inputs", "schema", "files"}}
        return {"output": str(self.output), "done": self.done, "why": self.why, **shown}

    def render(self) -> Iterable[RenderableType]:
        """The splits, then what deserves a look."""
        yield from render_manifest(self.output, self.manifest)
        if self.done == "unchanged":
            yield "Neither the inputs nor the config have changed since the last run: nothing was done."
        elif self.done == "appended":
            yield "New files were appended to the earlier output."
            yield from (f"Kept from before: {line}." for line in self.manifest["kept"])
        elif self.why:
            yield f"Everything was built anew, because {self.why}."
