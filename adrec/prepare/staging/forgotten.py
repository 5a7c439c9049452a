"""Who is forgotten: a file of salted digests of user ids, by which preprocess knows the rows to leave out.

The owner's raw log still names them; every build of the prepared folder leaves them out anew. The digest is SHA-256 of the salt
and the id (of the pseudonym where ids are pseudonymised): the file holds no id, though who has it can ask whether a known id is
among them.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adrec.data.disk.writing import write_aside
from adrec.errors import ConfigError

_HEAD = "adrec forgotten users, salt "
_HEX = re.compile("[0-9a-f]+")


@dataclass(frozen=True)
class Forgotten:
    """The salt and the digests of a file."""

    salt: str
    digests: frozenset[str] = frozenset()

    @classmethod
    def load(cls, path: Path) -> "Forgotten":
        """The file's; nobody, under a new salt, where there is no file. Raises ConfigError where it is none of adrec's."""
        try:
            head, *digests = path.read_text(encoding="ascii").splitlines()
        except FileNotFoundError:
            return cls(secrets.token_hex(16))
        except (OSError, ValueError):
            head, digests = "", []
        salt = head.removeprefix(_HEAD)
        if not head.startswith(_HEAD) or not all(_HEX.fullmatch(text) for text in (salt, *digests)):
            raise ConfigError(f"privacy.forgotten: {path} is no file of 'adrec forget'. Name another.")
        return cls(salt, frozenset(digests))

    def of(self, users: Sequence[str]) -> frozenset[str]:
        """The digests of user ids."""
        return frozenset(hashlib.sha256((self.salt + user).encode()).hexdigest() for user in users)

    def add(self, users: Sequence[str], path: Path) -> "Forgotten":
        """These users too, written to the file."""
        more = Forgotten(self.salt, self.digests | self.of(users))
        with write_aside(path) as aside:
            aside.write_text("\n".join([_HEAD + self.salt, *sorted(more.digests)]) + "\n", encoding="ascii")
        return more

    @property
    def fingerprint(self) -> str:
        """Changes when somebody is added; empty for nobody."""
        return hashlib.sha256("".join(sorted(self.digests)).encode()).hexdigest()[:16] if self.digests else ""
