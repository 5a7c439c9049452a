"""Config of `adrec encode`: ad and user vectors for other systems."""

from adrec.config.base import ConfigPath, OnDevice, OpensBundle
from adrec.config.cluster import OnCluster
from adrec.config.data.own_tables import OwnTable


class EncodeConfig(OnDevice, OpensBundle, OnCluster):
    """Vectors whose dot product orders ads for a user. Reads a bundle, ads and (optionally) users; writes a folder."""

    bundle: ConfigPath
    """Folder made by `adrec finetune`."""
    output: ConfigPath
    """Folder to write: ads.parquet, ads.npy, ads.ids.txt, and the same for users."""
    prepared: ConfigPath | None = None
    """Prepared folder: its ads, and its users with their newest history."""
    ads: OwnTable | None = None
    """Files of ads; None takes those of `prepared`."""
    users: OwnTable | None = None
    """Files of users (user_id, optional interests and features); None takes those of `prepared`."""
    history: OwnTable | None = None
    """Files of clicks (user_id, ad_id, shown_at, optional click)."""
    cache: ConfigPath | None = None
    """Folder of cached text vectors; None is the user's cache folder."""
