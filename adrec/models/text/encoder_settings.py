"""`adrec.json`: what Hugging Face's own files cannot say of an encoder folder: pooling, template, token limit, prompts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adrec.errors import DataError
from adrec.models.text.sentence import Recorded, read_recorded

SETTINGS_FILE = "adrec.json"


def read_settings(where: Path) -> Recorded:
    """What a folder records, ours before others'. A file of weights alone, or a folder of ours, is its own inside.

    Raises DataError where `adrec.json` is no JSON.
    """
    own = where / SETTINGS_FILE
    if not where.is_dir():
        return Recorded({}, {}, where)
    if not own.exists():
        return read_recorded(where)
    try:
        return Recorded(json.loads(own.read_text(encoding="utf-8")), {}, where)
    except ValueError:
        raise DataError(f"{own}: not valid JSON. Copy the encoder folder again.") from None


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """What `read_settings` reads back."""
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
