"""Config of `adrec forget`: whom, and everything of adrec's that may hold them."""

from typing import Any

from pydantic import Field, field_validator

from adrec.config.base import ConfigPath, StageConfig
from adrec.config.inference.serve import StoreConfig


class ForgetConfig(StageConfig):
    """Take people out of everything that adrec keeps of them, and say what cannot be taken out."""

    users: list[str] = Field(min_length=1)
    """User ids as your log writes them."""
    preprocess: ConfigPath
    """Config of the `adrec preprocess` that reads their log. Its `privacy.forgotten` names the file that remembers whom to
    leave out; the prepared folder is built anew without them."""
    store: StoreConfig | None = None
    """The server's event store: `store.store` or `store.redis`, as for serve."""
    tables: list[ConfigPath] = []
    """Files that score, rank or events wrote: their rows go."""
    bundles: list[ConfigPath] = []
    """Bundle folders to look through. Weights cannot be taken back: bundles that know them are named, to be trained again."""
    look_through: list[ConfigPath] = []
    """Other folders and files that adrec wrote: encoders, federated bundles, registries, reports, what `encode` wrote. They are
    searched; those that hold an id are named, for you to remove or to make again."""
    cache: ConfigPath | None = None
    """Folder of cached text vectors. Default: the user's."""

    @field_validator("users", mode="before")
    @classmethod
    def _as_the_log_writes_them(cls, users: Any) -> Any:
        """YAML would take the zeros off 007."""
        if isinstance(users, list) and (other := [user for user in users if not isinstance(user, str)]):
            raise ValueError(f"{other[0]} is a number to YAML: write ids in quotes, as the log has them")
        return users
