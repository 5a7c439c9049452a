"""Config of `adrec explain`."""

from typing import Annotated, Literal

from pydantic import Field

from adrec.config.base import ConfigPath, OnDevice, Seeded
from adrec.config.inference.score import RowsConfig


class ExplainConfig(RowsConfig, OnDevice, Seeded):
    """Why rows got their scores. Reads the bundle and rows; writes the folder `output`."""

    output: ConfigPath
    """Folder to write: explanations.json and explanations.html, or importance.json."""
    overall: bool = False
    """Not row by row, but which inputs the model lives on over many rows, and what a feature's value does to the score."""
    overall_rows: Annotated[int, Field(ge=100, le=1_000_000)] = 5_000
    """Rows looked at then, the first; they need their clicks."""
    user_id: str | None = None
    """Explain only rows of this user."""
    ad_id: str | None = None
    """Explain only rows of this ad."""
    rows: Annotated[int, Field(ge=1, le=1000)] = 20
    """Rows to explain, the first that fit."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of sentences and names: en, zh, or auto: what each row's user reads, as in the lists' reasons."""
    occlusion: Annotated[int, Field(ge=0, le=32)] = 6
    """Where the bundle reads pictures: grey patches along each side of the ad's picture, laid over it one by one, to tell which
    part of it the score hangs on. 0: none."""
    pictures: ConfigPath | None = None
    """Folder that names of picture files of prepared ads start from; None: where preprocess read them."""
