"""Config of `adrec doctor`."""

from pathlib import Path

from adrec.config.base import ConfigPath, StageConfig


class DoctorConfig(StageConfig):
    """What `adrec doctor` looks at."""

    folder: ConfigPath = Path()
    """Folder on the disk whose free space counts; by default the working folder."""
