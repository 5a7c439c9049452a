"""Two bundles at once (A/B): which arm a user is in, decided by nothing but the user's id and a salt."""

import hashlib
import secrets
from typing import NamedTuple

from adrec.config.inference.serve import Challenger

FIRST, SECOND = "a", "b"


class Arm(NamedTuple):
    """Where a user is, and the share of users that is there: the propensity of the arm."""

    name: str
    share: float


def arm_of(user_id: str | None, challenger: Challenger | None) -> Arm:
    """The arm of a user: always the same one under the same salt and share; a larger share only adds users to arm b.

    Somebody unknown (None) is drawn anew each time.
    """
    if challenger is None:
        return Arm(FIRST, 1.0)
    if user_id is None:
        user_id = secrets.token_hex(8)
    digest = hashlib.blake2b(f"{challenger.salt}\0{user_id}".encode(), digest_size=8).digest()
    in_second = int.from_bytes(digest, "big") < challenger.share * 2**64
    return Arm(SECOND, challenger.share) if in_second else Arm(FIRST, 1.0 - challenger.share)
