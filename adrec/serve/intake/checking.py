"""Is a request one that the live bundle can answer? Held against the bundle before it joins a pass of the model.

Whoever asks for something impossible is told where and what, and never shares a pass: the others' results are those they would
have had without it. Costs a Python call a value that a request brings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from adrec.config.inference.serve import Challenger
from adrec.errors import DataError, visible
from adrec.inference.click_model import ClickModel
from adrec.schema import NOBODY
from adrec.serve.arms import Arm, arm_of
from adrec.serve.intake.columns import Columns, refused_name, vector_types
from adrec.serve.intake.fields import micros
from adrec.serve.intake.messages import EventIn, ExplainRequest, RankRequest, RankUser, ScoreRequest, ScoreRow, UserIn
from adrec.serve.intake.names import Names
from adrec.serve.intake.recorded import moment_of
from adrec.serve.state.live import Live

_TOLD = 20
"""Places that an answer names."""
_LONGEST_ID = 200
_CLOCKS_DIFFER = 86_400_000_000
"""Microseconds that an event may lie ahead."""


class Place(NamedTuple):
    """Something in a request that is wrong, or that counts as not said."""

    where: str
    what: str


class RefusedError(DataError):
    """A request that cannot be answered: `faults`, and the `status` of the answer."""

    def __init__(self, faults: Sequence[Place], status: int = 422) -> None:
        super().__init__("; ".join(f"{where}: {what}" for where, what in faults))
        self.faults, self.status = list(faults), status


@dataclass(frozen=True)
class Row:
    """A question about a user at a moment, in the types of the bundle's columns."""

    user: UserIn
    """as described, or by id alone; nobody is `NOBODY`"""
    user_id: str
    called: str | None
    """the user's name as the request has it"""
    ad_id: str
    shown_at: int | None
    """microseconds since 1970; None: now"""
    scenario: str | None
    query: str | None
    context: dict[str, Any]
    arm: Arm
    candidates: dict[int, int] | None = None
    """rows of the live ads, and their places in the request"""
    top_n: int | None = None


@dataclass
class Asked:
    """A request that can be answered, and what of it counts as not said."""

    rows: list[Row]
    notes: list[Place] = field(default_factory=list)


def read_score(item: ScoreRequest, lives: dict[str, Live], challenger: Challenger | None, names: Names) -> Asked:
    """Raises RefusedError."""
    reading = _Reading(lives, challenger, names)
    users = reading.users(item.users)
    rows = [reading.row(row, users, f"rows.{place}") for place, row in enumerate(item.rows)]
    return reading.done(rows)


def read_rank(item: RankRequest, lives: dict[str, Live], challenger: Challenger | None, names: Names) -> Asked:
    """Raises RefusedError. A candidate that is none is left out, and noted."""
    reading = _Reading(lives, challenger, names)
    rows: list[Row] = []
    for place, request in enumerate(item.requests):
        where = f"requests.{place}"
        row = reading.request(request, where)
        same = [other for other in rows if other.user_id == row.user_id]
        if same and row.user_id != NOBODY:
            reading.fault(f"{where}.user_id", "a user may occur once in a call. Send further requests of a user apart", 400)
        elif any(_described(other.user) != _described(row.user) for other in same):
            reading.fault(f"{where}.user_id", "describe one unknown user a call, or give an id to tell them apart", 400)
        rows.append(row)
    return reading.done(rows)


def read_explain(item: ExplainRequest, lives: dict[str, Live], challenger: Challenger | None, names: Names) -> Asked:
    """Raises RefusedError."""
    reading = _Reading(lives, challenger, names)
    row = ScoreRow.model_construct(
        item.model_fields_set | item.user.model_fields_set, user_id=item.user.user_id, ad_id=item.ad_id,
        shown_at=item.shown_at, scenario=item.scenario, query=item.query, context=item.context,
    )  # fmt: skip
    return reading.done([reading.row(row, reading.users([item.user], "user"), "")])


def refuse_vectors(vectors: Mapping[str, list[float]], bundles: Sequence[ClickModel]) -> None:
    """Raises RefusedError where an ad brings vectors that no bundle reads, or of another width than one of them reads."""
    faults = []
    for name, vector in vectors.items():
        widths = {types[name].list_size for packed in bundles if name in (types := vector_types(packed.features["ads"]))}
        if not widths:
            known = sorted({name for packed in bundles for name in vector_types(packed.features["ads"])})
            faults.append(Place(f"body.vectors.{name}", f"the bundle reads no such vectors, but {', '.join(known) or 'none'}"))
        for width in widths - {len(vector)}:
            faults.append(Place(f"body.vectors.{name}", f"{width} numbers are expected, these are {len(vector)}"))
    if faults:
        raise RefusedError(_bounded(faults))


def check_moments(events: Sequence[EventIn], now: int) -> None:
    """Raises RefusedError for events that have not happened yet: counters would fade what is known away until they have.

    now: microseconds; clocks may differ by a day.
    """
    ahead = [place for place, event in enumerate(events) if moment_of(event, now) > now + _CLOCKS_DIFFER]
    if ahead:
        raise RefusedError(_bounded([Place(f"events.{place}.at", "lies in the future") for place in ahead]))


class _Reading:
    """Collects faults and notes while one request is read."""

    def __init__(self, lives: dict[str, Live], challenger: Challenger | None, names: Names) -> None:
        self._lives, self._challenger, self._names = lives, challenger, names
        self._faults: list[Place] = []
        self._notes: list[Place] = []
        self._status = 400

    def fault(self, where: str, what: str, status: int = 422) -> None:
        """One more thing that is wrong."""
        self._faults.append(Place(where.lstrip("."), what))
        self._status = max(self._status, status)

    def done(self, rows: list[Row]) -> Asked:
        """What was read. Raises RefusedError where something was wrong."""
        if self._faults:
            raise RefusedError(_bounded(self._faults), self._status)
        return Asked(rows, _bounded(self._notes))

    def users(self, described: list[UserIn], where: str = "users") -> dict[str, UserIn]:
        """The described users by id."""
        users: dict[str, UserIn] = {}
        for place, user in enumerate(described):
            at = where if where == "user" else f"{where}.{place}"
            name = self._inside(user.user_id)
            if name in users:
                self.fault(f"{at}.user_id", "this user is described twice")
            users[name] = self._typed(user, at)
        return users

    def row(self, row: ScoreRow, users: dict[str, UserIn], where: str) -> Row:
        """One row of (user, ad)."""
        arm, live = self._live(row.user_id)
        named = self._name(row, live, where)
        ad_id = row.ad_id or NOBODY
        if not live.predictor.packed.has.ad:
            ad_id = NOBODY
        elif row.ad_id is None:
            self.fault(f"{where}.ad_id", "is needed")
        elif row.ad_id not in live:
            self.fault(f"{where}.ad_id", f"'{row.ad_id}' is not in the catalogue. PUT /v1/ads/{{id}} adds it", 400)
        user = users.get(named) or UserIn.model_construct(user_id=named)
        context = self._cells(row.context, live.context_columns, f"{where}.context")
        [query] = live.predictor.packed.form.masked([row.query])
        return Row(user, named, row.user_id, ad_id, micros(row.shown_at), row.scenario, query, context, arm)

    def request(self, request: RankUser, where: str) -> Row:
        """One request for a list."""
        arm, live = self._live(request.user_id)
        named = self._name(request, live, where)
        context = self._cells(request.context, live.context_columns, f"{where}.context")
        candidates = None if request.candidates is None else self._candidates(request.candidates, live, where)
        [query] = live.predictor.packed.form.masked([request.query])
        return Row(
            self._typed(request, where), named, request.user_id, NOBODY, micros(request.shown_at), request.scenario, query,
            context, arm, candidates, request.top_n,
        )  # fmt: skip

    def _live(self, user_id: str | None) -> tuple[Arm, Live]:
        arm = arm_of(None if user_id is None else self._inside(user_id), self._challenger)
        return arm, self._lives[arm.name]

    def _name(self, message: ScoreRow | RankUser, live: Live, where: str) -> str:
        if message.user_id is None and live.predictor.packed.has.user and "user_id" not in message.model_fields_set:
            self.fault(f"{where}.user_id", "is needed; null stands for somebody unknown")
        return self._inside(message.user_id)

    def _inside(self, user_id: str | None) -> str:
        return self._names.inside(user_id, self._lives) if user_id else NOBODY

    def _typed(self, user: UserIn, where: str) -> UserIn:
        """The user with features in the types of their columns."""
        _, live = self._live(user.user_id)
        features = self._cells(user.features, live.user_columns, f"{where}.features")
        unknown = [ad_id for ad_id in user.history or () if ad_id not in live.row_of_ad]
        if unknown:
            self._note(
                f"{where}.history", f"{len(unknown):,} of {len(user.history or ()):,} are not in the catalogue ({unknown[0]})"
            )
        masked = live.predictor.packed.form.masked
        interests = None if user.interests is None else [word or "" for word in masked(user.interests)]
        return UserIn.model_construct(
            user_id=self._inside(user.user_id), history=user.history, interests=interests, features=features
        )

    def _cells(self, values: dict[str, Any], columns: Columns, where: str) -> dict[str, Any]:
        cells = {}
        for name, value in values.items():
            reason = refused_name(name)
            if reason is not None:
                self.fault(f"{where}.{name}", reason)
            elif name not in columns.types:
                self._note(f"{where}.{name}", "the bundle reads no such column")
            else:
                try:
                    cells[name] = columns.cell(name, value)
                except ValueError as error:
                    self.fault(f"{where}.{name}", str(error))
        return cells

    def _candidates(self, given: list[Any], live: Live, where: str) -> dict[int, int]:
        rows: dict[int, int] = {}
        for place, ad_id in enumerate(given):
            at = f"{where}.candidates.{place}"
            if not isinstance(ad_id, str):
                self._note(at, "left out: an identifier is text")
            elif ad_id not in live:
                self._note(at, f"left out: '{ad_id[:_LONGEST_ID]}' is not in the catalogue")
            else:
                rows.setdefault(live.row_of_ad[ad_id], place)
        return rows

    def _note(self, where: str, what: str) -> None:
        self._notes.append(Place(visible(where.lstrip(".")), visible(what)))


def _described(user: UserIn) -> tuple[Any, Any]:
    """What the users table says of a user; a history belongs to the row."""
    return user.interests, user.features


def _bounded(places: list[Place]) -> list[Place]:
    if len(places) <= _TOLD:
        return places
    return [*places[:_TOLD], Place("", f"and {len(places) - _TOLD:,} more")]
