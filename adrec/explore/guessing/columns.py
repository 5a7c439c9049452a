"""Which column is which: by its name, checked against its values; by its values where no name fits; or as the user says.

Never refuses: what the files do not say becomes a gap, with what goes without it and which columns may be meant.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from adrec import schema
from adrec.errors import DataError
from adrec.explore.guessing.findings import Guess, Shape, values_of
from adrec.explore.guessing.gaps import find_gaps
from adrec.explore.guessing.inputs import declare_features
from adrec.explore.guessing.labels import Kinds, Label, is_of_events, kinds_of, label_of, threshold
from adrec.explore.guessing.names import (
    AFTERWARDS,
    is_coarse,
    is_code,
    is_of_people_or_places,
    is_row_name,
    likeness,
    owner,
    plain,
    snake,
)
from adrec.explore.guessing.roles import find_others, the_log
from adrec.explore.guessing.ties import Rows, rows_of
from adrec.explore.look import Column, Table

Said = Mapping[str, str | list[str] | None]

_OF_ADS = ("category", "advertiser_id", "starts_at", "ends_at", "bid", "budget")
_TEXTS = ("title", "description")
_CONTEXT = ("position", "propensity", "propensity_given_above", "dwell_seconds", "scenario", "query", "history")
_COUNTS = ("impressions", "clicks", "conversions", "spend")
_SHARED_IDS = {"deviceid", "cookie", "cookieid", "idfa", "gaid", "uuid", "guid", "设备id"}
_MOST_OF_ONE = 0.2
"""A device or a cookie with more of the rows than this stands for many people: an unknown one, a proxy."""
_OTHER_MOMENTS = re.compile(
    r"birth|dob|expire|end|signup|sign_up|regist|updat|releas|publish|launch|install|first|last|生日|注册"
)
_SHOWN = re.compile(r"impression|imps?(_|$)|shown|expos|served|曝光|展示")
_WORDS_OF_A_TEXT = 1.8
_FEWEST_IDS = 10


def guess(tables: list[Table], said: Said | None = None) -> Guess:
    """Say which table is the log, the ads, the users, the clicks, and which column is which.

    `said`: canonical name -> column(s), from the user; None: there is none. Raises DataError where no table has them.
    """
    with ExitStack() as stack:
        rows = {id(table): stack.enter_context(rows_of(table)) for table in tables}
        log = the_log(tables)
        found = Guess({"impressions": log}, {"impressions": {}})
        find_others(found, [table for table in tables if table is not log], rows)
        search = _Search(found, rows[id(log)], dict(said or {}))
        search.run()
        for role in ("ads", "users"):
            if role in found.tables:
                _name_entities(found, role, rows[id(found.tables[role])], search.said)
        for role in ("clicks", "conversions"):
            if role in found.tables:
                _name_events(found, role)
        declare_features(found, {role: rows[id(table)] for role, table in found.tables.items()}, search.label)
        find_gaps(found, rows[id(log)], search.said)
    _keep_other_names_apart(found)
    for table in found.tables.values():
        found.notes += [f"{table.label}: {note}" for note in table.notes if f"{table.label}: {note}" not in found.notes]
    return found


class _Search:
    """The search for the log's columns."""

    def __init__(self, found: Guess, rows: Rows, said: dict[str, str | list[str] | None]) -> None:
        self.found, self.rows, self.said = found, rows, said
        self.reading = found.reading.setdefault("impressions", {})
        self.label: tuple[str, Label] | None = None
        """The column of clicks and how it says them, where one does."""

    def run(self) -> None:
        """Ids first: what a title or a category is follows from whose it is."""
        self._take_what_is_said()
        for canonical, role in (("user_id", "users"), ("ad_id", "ads")):
            self._take_best(canonical)
            self._take_determining(canonical, role)
        self._labels()
        self._take_best("request_id")
        self._time()
        for label, moment in (("click", "clicked_at"), ("conversion", "converted_at")):
            if {label, "shown_at"} <= self.names.keys():
                self._take_best(moment)
        for canonical in _CONTEXT:
            self._take_best(canonical)
        position = self.found.column("impressions", "position")
        if position is not None and position.low == 0:
            self.reading["first_position"] = 0
        if "ads" not in self.found.tables:
            self._text("title")
            for canonical in ("description", *_OF_ADS):
                self._take_best(canonical)
        if "users" not in self.found.tables and "user_id" in self.names:
            self._take_best("interests")
        title = self.names.get("title")
        if title is not None and self._is_open("ad_id"):
            self.found.take("impressions", "ad_id", title, "no column names the ad: its text stands for it")

    @property
    def names(self) -> dict[str, str | list[str]]:
        return self.found.names["impressions"]

    def _take_what_is_said(self) -> None:
        for canonical, columns in self.said.items():
            wanted = [columns] if isinstance(columns, str) else columns or []
            roles = [role for role, table in self.found.tables.items() if all(name in table.columns for name in wanted)]
            if not wanted:
                continue
            if not roles:
                there = "; ".join(f"{table.label}: {', '.join(table.columns)}" for table in self.found.tables.values())
                raise DataError(f"columns.{canonical}: no table has {' and '.join(map(repr, wanted))}. There are {there}.")
            of_ads = canonical in {*_OF_ADS, *_TEXTS}
            home = "ads" if of_ads else "users" if canonical == "interests" else "impressions"
            roles.sort(key=lambda role: role != home)
            for role in roles if canonical in {"ad_id", "user_id", "request_id"} else roles[:1]:
                self.found.take(role, canonical, wanted[0] if len(wanted) == 1 else wanted, "you said so")

    def _free(self) -> list[Column]:
        used = self.found.used("impressions")
        return [column for column in self.rows.table.columns.values() if column.name not in used and column.filled]

    def _is_open(self, canonical: str) -> bool:
        return canonical not in self.said and canonical not in self.names

    def _take_best(self, canonical: str) -> None:
        """The column with the likeliest name whose values fit."""
        if not self._is_open(canonical):
            return
        for column in _likeliest(self._free(), canonical):
            if self._fits(canonical, column):
                self.found.take("impressions", canonical, column.name, f"by its name; {_values(canonical, column)}")
                return

    def _take_determining(self, canonical: str, role: str) -> None:
        """Where no name says it: the code on which most of what describes people (ads) depends."""
        if not self._is_open(canonical):
            return
        described = [column for column in self._free() if owner(column.name) == role and column.distinct > 1]
        codes = [
            column
            for column in self._free()
            if (is_row_name(column.name) or is_code(column.name))
            and column.name not in {other.name for other in described}
            and self._fits(canonical, column)
            and _FEWEST_IDS < column.distinct < 0.95 * column.filled
        ]
        for column in codes:
            depends = [other for other in described if self.rows.tie([column.name], [other.name], []).holds]
            if len(depends) >= 2 and len(depends) >= len(described) / 2:
                why = f"says what {', '.join(other.name for other in depends[:3])} are"
                self.found.take("impressions", canonical, column.name, why)
                return

    def _fits(self, canonical: str, column: Column) -> bool:
        if not fits(canonical, column):
            return False
        if canonical == "user_id":
            is_shared = plain(column.name) in _SHARED_IDS and self.rows.top_share(column.name) > _MOST_OF_ONE
            return column.distinct > 1 and not is_shared
        if canonical == "request_id":
            users = self.names.get("user_id")
            is_of_several = users is not None and self.rows.tie([column.name], _keys(users), []).fails
            return column.distinct < 0.95 * column.filled and not is_of_several
        if canonical in {*_OF_ADS, *_TEXTS} and column.distinct > 1:
            return not self._differs("ad_id", column)
        if canonical == "interests":
            return not self._differs("user_id", column)
        if canonical == "history" and "ad_id" in self.names:
            return self.rows.share_of_items(column, _keys(self.names["ad_id"])) >= 0.05
        return canonical not in {*_OF_ADS, "scenario", "position"} or column.distinct > 1

    def _differs(self, key: str, column: Column) -> bool:
        """Whether rows of the same ad (user) plainly hold different values."""
        return key in self.names and self.rows.tie(_keys(self.names[key]), [column.name], []).fails

    # What was clicked.

    def _labels(self) -> None:
        steps: tuple[Callable[[], Shape | None], ...] = (
            self._counts,
            self._named_flag,
            self._kinds,
            self._events_beside,
            self._rating,
            self._lone_flag,
            self._nothing_but,
        )
        if "click" in self.said:
            steps = (self._said_flag, *steps) if self.said["click"] is not None else (self._events_beside, self._nothing_but)
        self.found.shape = next((shape for step in steps if (shape := step()) is not None), "unlabelled")
        if self.found.shape not in {"counts", "clicks"}:
            self._conversion()

    def _said_flag(self) -> Shape | None:
        name = self.names["click"]
        column = self.rows.table.columns[name] if isinstance(name, str) else None
        label = label_of(self.rows, column) if column is not None else None
        if column is None:
            return None
        if label is None and column.is_number:
            least = threshold(column, self.rows)
            del self.names["click"]
            self.found.take("impressions", "rating", column.name, f"you said so; a click from {least:g} on")
            self.reading["at_least"] = {"click": {"rating": least}}
            return "ratings"
        return self._flag(column, label or Label(None), is_named=True)

    def _counts(self) -> Shape | None:
        pair = [next((c for c in _likeliest(self._free(), canonical) if _is_count(c)), None) for canonical in _COUNTS[:2]]
        if "impressions" in self.names and "clicks" in self.names:
            pair = [self.found.column("impressions", canonical) for canonical in _COUNTS[:2]]
        shown, clicked = pair
        if shown is None or clicked is None or (shown.high or 0) <= 1 or self.rows.above(clicked.name, shown.name) > 0.01:
            return None
        for canonical, column in zip(_COUNTS, pair, strict=False):
            if self._is_open(canonical) and column is not None:
                self.found.take("impressions", canonical, column.name, f"by its name; a count: {values_of(column)}")
        for canonical in _COUNTS[2:]:
            self._take_best(canonical)
        return "counts"

    def _named_flag(self) -> Shape | None:
        for column in [*_likeliest(self._free(), "click"), *_likeliest(self._free(), "clicks")]:
            label = label_of(self.rows, column)
            if label is not None:
                return self._flag(column, label, is_named=True)
        return None

    def _flag(self, column: Column, label: Label, *, is_named: bool) -> Shape:
        if self.names.get("click") != column.name:
            how = "by its name" if is_named else "the only column of two values that may be a click"
            self.found.take("impressions", "click", column.name, f"{how}; {label.why}")
        if label.positive is not None:
            self.reading["positive"] = {"click": list(label.positive)}
        if label.empty_is_zero:
            self.reading["defaults"] = {"click": 0}
        self.label = (column.name, label)
        return "clicks" if label.is_constant else "impressions"

    def _kinds(self) -> Shape | None:
        for column in self._free():
            kinds = kinds_of(self.rows, column)
            if kinds is None:
                continue
            keys = [
                name for canonical in ("user_id", "ad_id") if canonical in self.names for name in _keys(self.names[canonical])
            ]
            if not kinds.shown:
                self.found.pass_over("impressions", column, "says what happened: every row is taken for a click")
                return "clicks"
            if is_of_events(self.rows, column, kinds, keys):
                return self._event_log(column, kinds)
            words = kinds.clicked or kinds.bought
            self.found.take("impressions", "click", column.name, f"{', '.join(words)} means 1")
            self.reading["positive"] = {"click": list(words)}
            self.label = (column.name, Label(words))
            return "impressions"
        return None

    def _event_log(self, column: Column, kinds: Kinds) -> Shape:
        """Impressions and clicks are rows of one table: it is read once as either."""
        words = kinds.clicked or kinds.bought
        every = (*kinds.shown, *kinds.clicked, *kinds.bought, *kinds.other)
        for role, own in (("impressions", kinds.shown), ("clicks", words)):
            self.found.tables[role] = self.rows.table
            rest = [word for word in every if word not in own]
            self.found.reading.setdefault(role, {})["leave_out"] = {column.name: rest}
        why = f"rows of {', '.join(kinds.shown)} are impressions, of {', '.join(words)} their clicks"
        self.found.pass_over("impressions", column, why)
        return "events"

    def _events_beside(self) -> Shape | None:
        return "events" if "clicks" in self.found.tables or "conversions" in self.found.tables else None

    def _rating(self) -> Shape | None:
        self._take_best("rating")
        column = self.found.column("impressions", "rating")
        if column is None or column.distinct < 2:
            return None
        least = threshold(column, self.rows)
        self.reading["at_least"] = {"click": {"rating": least}}
        self.found.notes.append(
            f"{column.name!r} holds ratings from {column.low:g} to {column.high:g}: from {least:g} on a row counts as a click "
            "(`at_least` in preprocess.yaml)."
        )
        return "ratings"

    def _lone_flag(self) -> Shape | None:
        flags = [(column, label) for column in self._free() if (label := label_of(self.rows, column)) is not None]
        two = [
            (column, label)
            for column, label in flags
            if column.distinct == 2 and (column.is_flag or label.positive is not None) and owner(column.name) != "users"
        ]
        return self._flag(*two[0], is_named=False) if len(two) == 1 else None

    def _nothing_but(self) -> Shape | None:
        """A table of users and ads without a label is a log of what they took, unless its names say that ads were shown."""
        table = self.rows.table
        named = [*(file.name.split(".", 1)[0] for file in table.files), *table.columns]
        is_of_shown = any(_SHOWN.search(snake(name)) for name in named) or {
            "position",
            "propensity",
            "propensity_given_above",
        } & set(self.names)
        return "clicks" if "ad_id" in self.names and "user_id" in self.names and not is_of_shown else None

    def _conversion(self) -> None:
        """Another flag for what followed the click."""
        if not self._is_open("conversion"):
            return
        for column in _likeliest(self._free(), "conversion"):
            label = label_of(self.rows, column)
            if label is not None and not label.is_constant:
                self.found.take("impressions", "conversion", column.name, f"by its name; {label.why}")
                if label.positive is not None:
                    self.reading.setdefault("positive", {})["conversion"] = list(label.positive)
                return

    # When, and what it says.

    def _time(self) -> None:
        if not self._is_open("shown_at"):
            return
        times = [column for column in self._free() if column.time is not None and not column.is_list]
        named = [column for column in _likeliest(times, "shown_at") if not self._is_another_moment(column)]
        other = [column for column in times if self._is_plainly_a_time(column) and not self._is_another_moment(column)]
        for columns, how in ((named, "by its name"), (other, "its values are times")):
            if columns:
                self._take_time(columns[0], f"{how}; {values_of(columns[0])}")
                return

    def _is_plainly_a_time(self, column: Column) -> bool:
        """Whole numbers are times only where neither the name speaks for an id, nor an ad or a user that always has it."""
        if not column.is_number:
            return True
        says_otherwise = is_code(column.name) is not None or owner(column.name) in {"ads", "users"}
        keys = [self.names[key] for key in ("ad_id", "user_id") if key in self.names]
        belongs = any(self.rows.tie(_keys(key), [column.name], []).holds for key in keys)
        return "time_unit" in (column.time or {}) and not says_otherwise and not belongs

    def _is_another_moment(self, column: Column) -> bool:
        """A birthday, the end of a campaign; or the moment of an outcome, unless its name is one of those that logs use."""
        if _OTHER_MOMENTS.search(snake(column.name)):
            return True
        is_after = AFTERWARDS.search(snake(column.name)) is not None and self.found.shape != "clicks"
        return is_after and plain(column.name) not in {"clicktime", "clicktimestamp"}

    def _take_time(self, column: Column, why: str) -> None:
        pairs = [pair for pair in self.rows.table.joined if column.name in pair.columns]
        if not pairs:
            self.found.take("impressions", "shown_at", column.name, why)
            return
        self.found.take("impressions", "shown_at", list(pairs[0].columns), "a day and a time of day")
        self.reading |= pairs[0].time

    def _text(self, canonical: str) -> None:
        """Text that is the ad's: words, the same in all rows of an ad, no person's and no place's name."""
        if not self._is_open(canonical):
            return
        ad = self.names.get("ad_id")
        stands = [self.rows.table.columns[ad]] if isinstance(ad, str) and ad in self.rows.table.columns else []
        for column in _likeliest([*self._free(), *stands], canonical):
            if canonical == "title" and stands and fits(canonical, column) and self._is_finer(column, stands[0]):
                del self.names["ad_id"]
                self.found.findings = [one for one in self.found.findings if one.meaning != "ad_id"]
            if fits(canonical, column) and self._is_an_ads_text(column):
                self.found.take("impressions", canonical, column.name, f"by its name; {column.words:.0f} words on average")
                return
        texts = [
            column
            for column in self._free()
            if fits(canonical, column)
            and column.words >= _WORDS_OF_A_TEXT
            and not column.is_list
            and not AFTERWARDS.search(snake(column.name))
            and owner(column.name) not in {"users", "impressions"}
            and self._is_an_ads_text(column)
        ]
        if texts:
            longest = max(texts, key=lambda column: column.words)
            self.found.take("impressions", canonical, longest.name, f"the longest text, {longest.words:.0f} words on average")

    def _is_finer(self, title: Column, ad: Column) -> bool:
        """A group or a campaign of several texts is not the ad: the text is."""
        is_text = title.words >= _WORDS_OF_A_TEXT and not is_of_people_or_places(title.name)
        return (
            is_coarse(ad.name) and not ad.is_number and "ad_id" not in self.said and is_text and self._differs("ad_id", title)
        )

    def _is_an_ads_text(self, column: Column) -> bool:
        if column.distinct < 2 or is_of_people_or_places(column.name) or self.rows.letters(column.name) < 0.5:
            return False
        if "ad_id" not in self.names:
            return "user_id" not in self.names or not self.rows.tie(_keys(self.names["user_id"]), [column.name], []).holds
        return not self._differs("ad_id", column)


def fits(canonical: str, column: Column) -> bool:
    """Whether the values of a column allow the meaning that its name suggests."""
    is_time = column.time is not None
    if canonical in {"shown_at", "starts_at", "ends_at", "clicked_at", "converted_at"}:
        return is_time
    if canonical in {"user_id", "ad_id", "request_id"}:
        is_stored_time = is_time and not column.is_number
        is_fraction = column.is_number and not column.whole
        return not (column.separator == "" or column.is_list or is_stored_time or is_fraction or column.is_flag)
    if canonical in {"bid", "budget", "dwell_seconds", "spend", "conversions"}:
        return column.is_number and (column.low or 0) >= 0
    if canonical == "rating":
        return column.is_number and (column.low or 0) >= 0 and (plain(column.name) != "score" or (column.high or 11) <= 10)
    if canonical in {"propensity", "propensity_given_above"}:
        return column.is_number and column.low is not None and column.low > 0 and (column.high or 2) <= 1
    if canonical == "position":
        return column.is_number and column.whole and (column.low or 0) >= 0 and not is_time
    if canonical in {"history", "interests"}:
        return column.separator is not None or (
            canonical == "interests" and column.stored == "VARCHAR" and not column.is_number
        )
    if canonical in {*_TEXTS, "query"}:
        return column.separator != "" and not column.is_number and not is_time
    return not is_time and (column.separator != "" or canonical == "category")


def _likeliest(columns: list[Column], canonical: str) -> list[Column]:
    """Columns with a name for `canonical`, the likeliest first."""
    ranked = [
        (place, number, column)
        for number, column in enumerate(columns)
        if (place := likeness(column.name, canonical)) is not None
    ]
    return [column for _, _, column in sorted(ranked, key=lambda item: item[:2])]


def _is_count(column: Column) -> bool:
    return column.is_number and column.whole and (column.low or 0) >= 0 and column.time is None


def _values(canonical: str, column: Column) -> str:
    return (
        f"{column.distinct:,} values"
        if canonical.endswith("_id") or canonical in {"category", "scenario"}
        else values_of(column)
    )


def _keys(columns: str | list[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else columns


def _name_entities(found: Guess, role: str, rows: Rows, said: Said) -> None:
    """The columns of a table of ads or of users."""
    wanted = (*_TEXTS, *_OF_ADS) if role == "ads" else ("interests",)
    for canonical in wanted:
        if canonical in found.names[role] or canonical in said:
            continue
        used = found.used(role)
        free = [column for column in rows.table.columns.values() if column.name not in used and column.filled]
        named = [column for column in _likeliest(free, canonical) if fits(canonical, column)]
        why = "by its name"
        if not named and canonical == "title":
            named = [
                column
                for column in sorted(free, key=lambda column: -column.words)
                if fits(canonical, column) and column.words >= _WORDS_OF_A_TEXT and rows.letters(column.name) >= 0.5
            ]
            why = "the longest text"
        if named:
            found.take(role, canonical, named[0].name, f"{why}; {values_of(named[0])}")


def _name_events(found: Guess, role: str) -> None:
    """A table of clicks (conversions): the ids that it shares with the log, and its moment."""
    table, log = found.tables[role], found.tables["impressions"]
    moment = "clicked_at" if role == "clicks" else "converted_at"
    names = found.names.setdefault(role, {})
    if table is log:  # one log of events
        names |= {key: value for key, value in found.names["impressions"].items() if key in {"user_id", "ad_id", "request_id"}}
        if "shown_at" in found.names["impressions"]:
            names[moment] = found.names["impressions"]["shown_at"]
    else:
        columns = list(table.columns.values())
        for canonical in ("request_id", "user_id", "ad_id"):
            named = [
                column for column in _likeliest(columns, canonical) if fits(canonical, column) or canonical != "request_id"
            ]
            if named and canonical not in names and (canonical == "request_id" or canonical in found.names["impressions"]):
                found.take(role, canonical, named[0].name, "by its name, as in the log")
        times = [column for column in columns if column.time is not None and column.name not in found.used(role)]
        if times:
            found.take(role, moment, times[0].name, f"its moment; {values_of(times[0])}")
    _join(found, role)


def _join(found: Guess, role: str) -> None:
    """By the request or impression id where both have one, else by user, ad and time."""
    log, events = found.names["impressions"], found.names[role]
    if "request_id" in events and "request_id" not in log:
        same = _likeliest(list(found.tables["impressions"].columns.values()), "request_id")
        if same:
            found.take("impressions", "request_id", same[0].name, f"names what the {role} belong to")
    shared: list[str] = [
        canonical for canonical in ("request_id", "user_id", "ad_id") if canonical in log and canonical in events
    ]
    if "request_id" in shared:
        shared = [canonical for canonical in shared if canonical != "user_id"]
    else:
        found.reading.setdefault(role, {})["within"] = "30 minutes"
        events.pop("request_id", None)
    found.joined_on[role] = shared


def _keep_other_names_apart(found: Guess) -> None:
    """A column that has a name of the contract and means something else is read under another name."""
    for role in ("impressions", "ads", "users"):
        if role not in found.tables:
            continue
        contract = {*schema.IMPRESSIONS.names, *schema.OUTCOMES} if role == "impressions" else set()
        contract |= set(schema.ADS.names) if role == "ads" or (role == "impressions" and "ads" not in found.tables) else set()
        contract |= (
            set(schema.USERS.names) if role == "users" or (role == "impressions" and "users" not in found.tables) else set()
        )
        contract -= {schema.TRUE_PROBABILITY, *schema.ROW_NAMES} - {"request_id"}
        used, named = found.used(role), found.names[role]
        for column in found.tables[role].columns:
            features = found.features.get(role, {})
            is_a_feature = any(column in columns for kinds in found.features.values() for columns in kinds.values())
            if column in contract and column not in used and (column not in named or is_a_feature) and column != "image":
                named[f"own_{column}"] = column
                for kinds in found.features.values():
                    for kind, columns in kinds.items():
                        kinds[kind] = [f"own_{column}" if name == column else name for name in columns]
            del features
