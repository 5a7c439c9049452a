"""What was clicked: counts, a flag, a word among kinds of events, a rating, or the mere fact that a row is there."""

import re
from collections.abc import Callable

from adrec.explore.guessing.findings import Shape, values_of
from adrec.explore.guessing.fitting import is_count, keys_of, likeliest
from adrec.explore.guessing.labels import Kinds, Label, is_of_events, kinds_of, label_of, threshold
from adrec.explore.guessing.names import owner, snake
from adrec.explore.guessing.search import LogSearch
from adrec.explore.look import Column

_COUNTS = ("impressions", "clicks", "conversions", "spend")
_SHOWN = re.compile(r"impression|imps?(_|$)|shown|expos|served|曝光|展示")


class OutcomeSearch:
    """The search for the columns of clicks, ratings and conversions, which says the shape of the log."""

    def __init__(self, log: LogSearch) -> None:
        self.log = log

    def run(self) -> None:
        """The first way that the columns allow; then what followed the click."""
        steps: tuple[Callable[[], Shape | None], ...] = (
            self._counts,
            self._named_flag,
            self._kinds,
            self._events_beside,
            self._rating,
            self._lone_flag,
            self._nothing_but,
        )
        if "click" in self.log.said:
            steps = (
                (self._said_flag, *steps) if self.log.said["click"] is not None else (self._events_beside, self._nothing_but)
            )
        self.log.guessed.shape = next((shape for step in steps if (shape := step()) is not None), "unlabelled")
        if self.log.guessed.shape not in {"counts", "clicks"}:
            self._conversion()

    def _said_flag(self) -> Shape | None:
        name = self.log.names["click"]
        column = self.log.rows.table.columns[name] if isinstance(name, str) else None
        label = label_of(self.log.rows, column) if column is not None else None
        if column is None:
            return None
        if label is None and column.is_number:
            least = threshold(column, self.log.rows)
            del self.log.names["click"]
            self.log.guessed.take("impressions", "rating", column.name, f"you said so; a click from {least:g} on")
            self.log.reading["at_least"] = {"click": {"rating": least}}
            return "ratings"
        return self._flag(column, label or Label(None), is_named=True)

    def _counts(self) -> Shape | None:
        pair = [next((c for c in likeliest(self.log.free(), canonical) if is_count(c)), None) for canonical in _COUNTS[:2]]
        if "impressions" in self.log.names and "clicks" in self.log.names:
            pair = [self.log.guessed.column("impressions", canonical) for canonical in _COUNTS[:2]]
        shown, clicked = pair
        if shown is None or clicked is None or (shown.high or 0) <= 1 or self.log.rows.above(clicked.name, shown.name) > 0.01:
            return None
        for canonical, column in zip(_COUNTS, pair, strict=False):
            if self.log.is_open(canonical) and column is not None:
                self.log.guessed.take("impressions", canonical, column.name, f"by its name; a count: {values_of(column)}")
        for canonical in _COUNTS[2:]:
            self.log.take_best(canonical)
        return "counts"

    def _named_flag(self) -> Shape | None:
        for column in [*likeliest(self.log.free(), "click"), *likeliest(self.log.free(), "clicks")]:
            label = label_of(self.log.rows, column)
            if label is not None:
                return self._flag(column, label, is_named=True)
        return None

    def _flag(self, column: Column, label: Label, *, is_named: bool) -> Shape:
        if self.log.names.get("click") != column.name:
            how = "by its name" if is_named else "the only column of two values that may be a click"
            self.log.guessed.take("impressions", "click", column.name, f"{how}; {label.why}")
        if label.positive is not None:
            self.log.reading["positive"] = {"click": list(label.positive)}
        if label.empty_is_zero:
            self.log.reading["defaults"] = {"click": 0}
        self.log.label = (column.name, label)
        return "clicks" if label.is_constant else "impressions"

    def _kinds(self) -> Shape | None:
        for column in self.log.free():
            kinds = kinds_of(self.log.rows, column)
            if kinds is None:
                continue
            keys = [
                name
                for canonical in ("user_id", "ad_id")
                if canonical in self.log.names
                for name in keys_of(self.log.names[canonical])
            ]
            if not kinds.shown:
                self.log.guessed.pass_over("impressions", column, "says what happened: every row is taken for a click")
                return "clicks"
            if is_of_events(self.log.rows, column, kinds, keys):
                return self._event_log(column, kinds)
            words = kinds.clicked or kinds.bought
            self.log.guessed.take("impressions", "click", column.name, f"{', '.join(words)} means 1")
            self.log.reading["positive"] = {"click": list(words)}
            self.log.label = (column.name, Label(words))
            return "impressions"
        return None

    def _event_log(self, column: Column, kinds: Kinds) -> Shape:
        """Impressions and clicks are rows of one table: it is read once as either."""
        words = kinds.clicked or kinds.bought
        every = (*kinds.shown, *kinds.clicked, *kinds.bought, *kinds.other)
        for role, own in (("impressions", kinds.shown), ("clicks", words)):
            self.log.guessed.tables[role] = self.log.rows.table
            rest = [word for word in every if word not in own]
            self.log.guessed.reading.setdefault(role, {})["leave_out"] = {column.name: rest}
        why = f"rows of {', '.join(kinds.shown)} are impressions, of {', '.join(words)} their clicks"
        self.log.guessed.pass_over("impressions", column, why)
        return "events"

    def _events_beside(self) -> Shape | None:
        return "events" if "clicks" in self.log.guessed.tables or "conversions" in self.log.guessed.tables else None

    def _rating(self) -> Shape | None:
        self.log.take_best("rating")
        column = self.log.guessed.column("impressions", "rating")
        if column is None or column.distinct < 2:
            return None
        least = threshold(column, self.log.rows)
        self.log.reading["at_least"] = {"click": {"rating": least}}
        self.log.guessed.notes.append(
            f"{column.name!r} holds ratings from {column.low:g} to {column.high:g}: from {least:g} on a row counts as a click "
            "(`at_least` in preprocess.yaml)."
        )
        return "ratings"

    def _lone_flag(self) -> Shape | None:
        flags = [(column, label) for column in self.log.free() if (label := label_of(self.log.rows, column)) is not None]
        two = [
            (column, label)
            for column, label in flags
            if column.distinct == 2 and (column.is_flag or label.positive is not None) and owner(column.name) != "users"
        ]
        return self._flag(*two[0], is_named=False) if len(two) == 1 else None

    def _nothing_but(self) -> Shape | None:
        """A table of users and ads without a label is a log of what they took, unless its names say that ads were shown."""
        table = self.log.rows.table
        named = [*(file.name.split(".", 1)[0] for file in table.files), *table.columns]
        is_of_shown = any(_SHOWN.search(snake(name)) for name in named) or {
            "position",
            "propensity",
            "propensity_given_above",
        } & set(self.log.names)
        return "clicks" if "ad_id" in self.log.names and "user_id" in self.log.names and not is_of_shown else None

    def _conversion(self) -> None:
        """Another flag for what followed the click."""
        if not self.log.is_open("conversion"):
            return
        for column in likeliest(self.log.free(), "conversion"):
            label = label_of(self.log.rows, column)
            if label is not None and not label.is_constant:
                self.log.guessed.take("impressions", "conversion", column.name, f"by its name; {label.why}")
                if label.positive is not None:
                    self.log.reading.setdefault("positive", {})["conversion"] = list(label.positive)
                return
