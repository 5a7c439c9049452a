"""What the way from raw tables to events found out, for whoever writes the output."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from adrec.config.data.preprocess import Split, TimeSplit
from adrec.data.availability import Availability
from adrec.data.labels import LabelCut
from adrec.data.shape import LogShape
from adrec.prepare.staging.validate import Rejected, Staged


@dataclass
class Built:
    """Tables `ads`, `users`, `requests`, `events` are ready; this is what was found on the way."""

    staged: list[tuple[str, Staged]] = field(default_factory=list)
    unchanged: set[str] = field(default_factory=set)
    """tables beside the impressions that hold just what the earlier output holds, and were not read again"""
    rejected: list[Rejected] = field(default_factory=list)
    unlisted_users: int = 0
    """users of the impressions that the users table lacks"""
    privacy: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """what deserves a word though it is no fault"""
    cuts: dict[str, datetime] = field(default_factory=dict)
    """when validation and test begin, where the split is in time order"""
    versioned: dict[str, list[str]] = field(default_factory=dict)
    """columns of ads and users that events carry as of their request"""
    split: Split = field(default_factory=TimeSplit)
    """of these rows: what the config says, with its moments where it names spans"""
    moves: bool = False
    """whether the bounds of an earlier output's parts move"""
    available: Availability | None = None
    """of the ads, where negatives are drawn from them"""
    repeated: float | None = None
    """share of the clicks on ads that their user had clicked before, where the log holds clicks alone"""
    joined: dict[str, dict[str, int]] = field(default_factory=dict)
    """how many clicks and conversions of files of their own belong to impressions"""
    shape: LogShape = field(default_factory=LogShape)
    """what the impressions name, and whether ads have texts"""
    gate: dict[str, Any] = field(default_factory=dict)
    """for the manifest: cuts, labels' moments, labels that came after the cut, findings"""

    @property
    def cut(self) -> datetime | None:
        """When training ends, where the split is in time order."""
        return min(self.cuts.values(), default=None)

    @property
    def label_cut(self) -> LabelCut | None:
        """What of the labels training rows may know."""
        moments = self.gate.get("label_moments", {})
        return LabelCut(self.cut, moments) if self.cut is not None and moments else None

    def rows(self, label: str) -> int:
        """Source rows of a table that were read."""
        return sum(staged.rows for table, staged in self.staged if table == label)

    def bad_rows(self, label: str) -> int:
        """Source rows of a table that were rejected."""
        return sum(staged.bad_rows for table, staged in self.staged if table == label)
