"""Which column is which: by its name, checked against its values; by its values where no name fits; or as the user says.

Never refuses: what the files do not say becomes a gap, with what goes without it and which columns may be meant.
"""

import re
from collections.abc import Mapping
from contextlib import ExitStack

from adrec.explore.guessing.findings import Guess, values_of
from adrec.explore.guessing.fitting import OF_ADS, WORDS_OF_A_TEXT, fits, keys_of, likeliest
from adrec.explore.guessing.gaps import find_gaps
from adrec.explore.guessing.inputs import declare_features
from adrec.explore.guessing.names import AFTERWARDS, is_coarse, is_code, is_of_people_or_places, owner, plain, snake
from adrec.explore.guessing.other_tables import keep_other_names_apart, name_entities, name_events
from adrec.explore.guessing.outcomes import OutcomeSearch
from adrec.explore.guessing.roles import find_others, the_log
from adrec.explore.guessing.search import LogSearch
from adrec.explore.guessing.ties import rows_of
from adrec.explore.look import Column, Table

Said = Mapping[str, str | list[str] | None]

_CONTEXT = ("position", "propensity", "propensity_given_above", "dwell_seconds", "scenario", "query", "history")
_OTHER_MOMENTS = re.compile(
    r"birth|dob|expire|end|signup|sign_up|regist|updat|releas|publish|launch|install|first|last|生日|注册"
)


def guess(tables: list[Table], said: Said | None = None) -> Guess:
    """Say which table is the log, the ads, the users, the clicks, and which column is which.

    `said`: canonical name -> column(s), from the user; None: there is none. Raises DataError where no table has them.
    """
    with ExitStack() as stack:
        rows = {id(table): stack.enter_context(rows_of(table)) for table in tables}
        log = the_log(tables)
        guessed = Guess({"impressions": log}, {"impressions": {}})
        find_others(guessed, [table for table in tables if table is not log], rows)
        search = LogSearch(guessed, rows[id(log)], dict(said or {}))
        _name_the_log(search)
        for role in ("ads", "users"):
            if role in guessed.tables:
                name_entities(guessed, role, rows[id(guessed.tables[role])], search.said)
        for role in ("clicks", "conversions"):
            if role in guessed.tables:
                name_events(guessed, role)
        declare_features(guessed, {role: rows[id(table)] for role, table in guessed.tables.items()}, search.label)
        find_gaps(guessed, rows[id(log)], search.said)
    keep_other_names_apart(guessed)
    for table in guessed.tables.values():
        guessed.notes += [f"{table.label}: {note}" for note in table.notes if f"{table.label}: {note}" not in guessed.notes]
    return guessed


def _name_the_log(log: LogSearch) -> None:
    """Ids first: what a title or a category is follows from whose it is."""
    log.take_what_is_said()
    for canonical, role in (("user_id", "users"), ("ad_id", "ads")):
        log.take_best(canonical)
        log.take_determining(canonical, role)
    OutcomeSearch(log).run()
    log.take_best("request_id")
    _time(log)
    for label, moment in (("click", "clicked_at"), ("conversion", "converted_at")):
        if {label, "shown_at"} <= log.names.keys():
            log.take_best(moment)
    for canonical in _CONTEXT:
        log.take_best(canonical)
    position = log.guessed.column("impressions", "position")
    if position is not None and position.low == 0:
        log.reading["first_position"] = 0
    if "ads" not in log.guessed.tables:
        _text(log, "title")
        for canonical in ("description", *OF_ADS):
            log.take_best(canonical)
    if "users" not in log.guessed.tables and "user_id" in log.names:
        log.take_best("interests")
    title = log.names.get("title")
    if title is not None and log.is_open("ad_id"):
        log.guessed.take("impressions", "ad_id", title, "no column names the ad: its text stands for it")


def _time(log: LogSearch) -> None:
    if not log.is_open("shown_at"):
        return
    times = [column for column in log.free() if column.time is not None and not column.is_list]
    named = [column for column in likeliest(times, "shown_at") if not _is_another_moment(log, column)]
    other = [column for column in times if _is_plainly_a_time(log, column) and not _is_another_moment(log, column)]
    for columns, how in ((named, "by its name"), (other, "its values are times")):
        if columns:
            _take_time(log, columns[0], f"{how}; {values_of(columns[0])}")
            return


def _is_plainly_a_time(log: LogSearch, column: Column) -> bool:
    """Whole numbers are times only where neither the name speaks for an id, nor an ad or a user that always has it."""
    if not column.is_number:
        return True
    says_otherwise = is_code(column.name) is not None or owner(column.name) in {"ads", "users"}
    keys = [log.names[key] for key in ("ad_id", "user_id") if key in log.names]
    belongs = any(log.rows.tie(keys_of(key), [column.name], []).holds for key in keys)
    return "time_unit" in (column.time or {}) and not says_otherwise and not belongs


def _is_another_moment(log: LogSearch, column: Column) -> bool:
    """A birthday, the end of a campaign; or the moment of an outcome, unless its name is one of those that logs use."""
    if _OTHER_MOMENTS.search(snake(column.name)):
        return True
    is_after = AFTERWARDS.search(snake(column.name)) is not None and log.guessed.shape != "clicks"
    return is_after and plain(column.name) not in {"clicktime", "clicktimestamp"}


def _take_time(log: LogSearch, column: Column, why: str) -> None:
    pairs = [pair for pair in log.rows.table.joined if column.name in pair.columns]
    if not pairs:
        log.guessed.take("impressions", "shown_at", column.name, why)
        return
    log.guessed.take("impressions", "shown_at", list(pairs[0].columns), "a day and a time of day")
    log.reading |= pairs[0].time


def _text(log: LogSearch, canonical: str) -> None:
    """Text that is the ad's: words, the same in all rows of an ad, no person's and no place's name."""
    if not log.is_open(canonical):
        return
    ad = log.names.get("ad_id")
    stands = [log.rows.table.columns[ad]] if isinstance(ad, str) and ad in log.rows.table.columns else []
    for column in likeliest([*log.free(), *stands], canonical):
        if canonical == "title" and stands and fits(canonical, column) and _is_finer(log, column, stands[0]):
            del log.names["ad_id"]
            log.guessed.findings = [finding for finding in log.guessed.findings if finding.meaning != "ad_id"]
        if fits(canonical, column) and _is_an_ads_text(log, column):
            log.guessed.take("impressions", canonical, column.name, f"by its name; {column.words:.0f} words on average")
            return
    texts = [
        column
        for column in log.free()
        if fits(canonical, column)
        and column.words >= WORDS_OF_A_TEXT
        and not column.is_list
        and not AFTERWARDS.search(snake(column.name))
        and owner(column.name) not in {"users", "impressions"}
        and _is_an_ads_text(log, column)
    ]
    if texts:
        longest = max(texts, key=lambda column: column.words)
        log.guessed.take("impressions", canonical, longest.name, f"the longest text, {longest.words:.0f} words on average")


def _is_finer(log: LogSearch, title: Column, ad: Column) -> bool:
    """A group or a campaign of several texts is not the ad: the text is."""
    is_text = title.words >= WORDS_OF_A_TEXT and not is_of_people_or_places(title.name)
    return is_coarse(ad.name) and not ad.is_number and "ad_id" not in log.said and is_text and log.differs("ad_id", title)


def _is_an_ads_text(log: LogSearch, column: Column) -> bool:
    if column.distinct < 2 or is_of_people_or_places(column.name) or log.rows.letters(column.name) < 0.5:
        return False
    if "ad_id" not in log.names:
        return "user_id" not in log.names or not log.rows.tie(keys_of(log.names["user_id"]), [column.name], []).holds
    return not log.differs("ad_id", column)
