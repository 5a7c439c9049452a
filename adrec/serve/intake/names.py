"""How users are called inside: by keyed pseudonyms where the log that the bundle learned from was pseudonymised.

Requests name users as their sender knows them; tables, counters and the event store know the pseudonym alone. Answers use the
sender's name. Costs a hash of some microseconds a user.
"""

import os
from collections.abc import Mapping

from adrec.config.data.preprocess import PrivacySettings
from adrec.prepare.staging.privacy import KEY_VARIABLE, is_pseudonym, load_key, pseudonym
from adrec.serve.state.live import Live


class Names:
    """The names that one server uses."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Raises ConfigError for a key that is too short."""
        self._key = load_key(PrivacySettings()) if environment.get(KEY_VARIABLE) else None

    @property
    def has_key(self) -> bool:
        """Whether pseudonyms can be made."""
        return self._key is not None

    def inside(self, identifier: str, lives: Mapping[str, Live]) -> str:
        """The name inside of a user, a request or an event. Without a key it is taken as it stands."""
        return pseudonym(identifier, self._key) if self._key is not None and pseudonymises(lives) else identifier

    def may_be_kept(self, user_id: str, lives: Mapping[str, Live]) -> bool:
        """Whether an event may be kept under this name: a raw one of a pseudonymised log only where a key can hide it."""
        return self._key is not None or is_pseudonym(user_id) or not pseudonymises(lives)


def pseudonymises(lives: Mapping[str, Live]) -> bool:
    """Whether a bundle that answers learned from a log of pseudonyms."""
    return any(live.predictor.packed.form.pseudonymised for live in lives.values())
