"""The columns of the tables beside the log: ads, users, clicks and conversions, and how the last two join the log."""

from collections.abc import Collection

from adrec import schema
from adrec.explore.guessing.findings import Guess, values_of
from adrec.explore.guessing.fitting import OF_ADS, TEXTS, WORDS_OF_A_TEXT, fits, likeliest
from adrec.explore.guessing.ties import Rows


def name_entities(guessed: Guess, role: str, rows: Rows, said: Collection[str]) -> None:
    """The columns of a table of ads or of users."""
    wanted = (*TEXTS, *OF_ADS) if role == "ads" else ("interests",)
    for canonical in wanted:
        if canonical in guessed.names[role] or canonical in said:
            continue
        used = guessed.used(role)
        free = [column for column in rows.table.columns.values() if column.name not in used and column.filled]
        named = [column for column in likeliest(free, canonical) if fits(canonical, column)]
        why = "by its name"
        if not named and canonical == "title":
            named = [
                column
                for column in sorted(free, key=lambda column: -column.words)
                if fits(canonical, column) and column.words >= WORDS_OF_A_TEXT and rows.letters(column.name) >= 0.5
            ]
            why = "the longest text"
        if named:
            guessed.take(role, canonical, named[0].name, f"{why}; {values_of(named[0])}")


def name_events(guessed: Guess, role: str) -> None:
    """A table of clicks (conversions): the ids that it shares with the log, and its moment."""
    table, log = guessed.tables[role], guessed.tables["impressions"]
    moment = "clicked_at" if role == "clicks" else "converted_at"
    names = guessed.names.setdefault(role, {})
    if table is log:  # one log of events
        names |= {
            key: value for key, value in guessed.names["impressions"].items() if key in {"user_id", "ad_id", "request_id"}
        }
        if "shown_at" in guessed.names["impressions"]:
            names[moment] = guessed.names["impressions"]["shown_at"]
    else:
        columns = list(table.columns.values())
        for canonical in ("request_id", "user_id", "ad_id"):
            named = [column for column in likeliest(columns, canonical) if fits(canonical, column) or canonical != "request_id"]
            if named and canonical not in names and (canonical == "request_id" or canonical in guessed.names["impressions"]):
                guessed.take(role, canonical, named[0].name, "by its name, as in the log")
        times = [column for column in columns if column.time is not None and column.name not in guessed.used(role)]
        if times:
            guessed.take(role, moment, times[0].name, f"its moment; {values_of(times[0])}")
    _join(guessed, role)


def _join(guessed: Guess, role: str) -> None:
    """By the request or impression id where both have one, else by user, ad and time."""
    log, events = guessed.names["impressions"], guessed.names[role]
    if "request_id" in events and "request_id" not in log:
        same = likeliest(list(guessed.tables["impressions"].columns.values()), "request_id")
        if same:
            guessed.take("impressions", "request_id", same[0].name, f"names what the {role} belong to")
    shared: list[str] = [
        canonical for canonical in ("request_id", "user_id", "ad_id") if canonical in log and canonical in events
    ]
    if "request_id" in shared:
        shared = [canonical for canonical in shared if canonical != "user_id"]
    else:
        guessed.reading.setdefault(role, {})["within"] = "30 minutes"
        events.pop("request_id", None)
    guessed.joined_on[role] = shared


def keep_other_names_apart(guessed: Guess) -> None:
    """A column that has a name of the contract and means something else is read under another name."""
    for role in ("impressions", "ads", "users"):
        if role not in guessed.tables:
            continue
        contract = {*schema.IMPRESSIONS.names, *schema.OUTCOMES} if role == "impressions" else set()
        contract |= set(schema.ADS.names) if role == "ads" or (role == "impressions" and "ads" not in guessed.tables) else set()
        contract |= (
            set(schema.USERS.names) if role == "users" or (role == "impressions" and "users" not in guessed.tables) else set()
        )
        contract -= {schema.TRUE_PROBABILITY, *schema.ROW_NAMES} - {"request_id"}
        used, named = guessed.used(role), guessed.names[role]
        for column in guessed.tables[role].columns:
            is_a_feature = any(column in columns for kinds in guessed.features.values() for columns in kinds.values())
            if (
                column in contract
                and column not in used
                and (column not in named or is_a_feature)
                and column not in {"image", "audio"}
            ):
                named[f"own_{column}"] = column
                for kinds in guessed.features.values():
                    for kind, columns in kinds.items():
                        kinds[kind] = [f"own_{column}" if name == column else name for name in columns]
