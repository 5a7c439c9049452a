"""Which store a config names."""

from adrec.config.inference.serve import StoreConfig
from adrec.errors import install_hint
from adrec.serve.store.contract import Store, StoreError


def open_store(config: StoreConfig) -> Store:
    """The store that the config names. Raises StoreError where it cannot be used."""
    if config.redis is None:
        from adrec.serve.store.sqlite_store import SqliteStore

        return SqliteStore(config.store, timeout_seconds=config.store_timeout_seconds)
    try:
        from adrec.serve.store.redis_store import RedisStore
    except ImportError:
        raise StoreError(f"redis: the package is not installed. Install it with: {install_hint('redis')}") from None
    return RedisStore(config.redis, prefix=config.redis_prefix, timeout_seconds=config.store_timeout_seconds)
