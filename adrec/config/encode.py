"""Config of `adrec encode`: ad and user vectors for other systems."""

from adrec.config.base import ConfigPath, OnDevice


class EncodeConfig(OnDevice):
    """Vectors whose dot product orders ads for a user. Reads a bundle, ads and (optionally) users; writes a folder."""

    bundle: ConfigPath
    """Folder made by `adrec finetune`."""
    output: ConfigPath
    """Folder to write: ads.parquet, ads.npy, ads.ids.txt, and the same for users."""
    prepared: ConfigPath | None = None
    """Prepared folder: its ads, and its users with their newest history."""
    ads: ConfigPath | None = None
    """Parquet file of ads; None takes those of `prepared`."""
    users: ConfigPath | None = None
    """Parquet file of users (user_id, optional interests and features)."""
    history: ConfigPath | None = None
    """Parquet file of clicks (user_id, ad_id, shown_at, optional click)."""
    cache: ConfigPath | None = None
    """Folder of cached text vectors; None is the user's cache folder."""
