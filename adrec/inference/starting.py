"""A bundle as the start of another training (`start_from`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from adrec.bundle import open_trusted
from adrec.inference.packing import unpack
from adrec.models.net.ensemble import Ensemble
from adrec.training.carrying import Described
from adrec.training.start import Start


def open_start(path: Path, trusted_keys: Sequence[Path] = ()) -> Start:
    """What the bundle at `path` gives to a training. Raises BundleError where it is none, is of another version, or was signed
    by none of the keys, if any are named.
    """
    bundle = open_trusted(path, trusted_keys)
    packed = unpack(bundle)
    own = packed.config.model.identities
    members = list(packed.model.members) if isinstance(packed.model, Ensemble) else [packed.model]
    described = Described(
        settings=packed.config.model,
        dimensions=packed.dimensions,
        features=packed.features,
        tasks=packed.tasks,
        seen_ads=packed.seen_ads["id"].combine_chunks().slice(0, None if "ads" in own else 0),
        seen_users=packed.seen_users["id"].combine_chunks().slice(0, None if "users" in own else 0),
        text_space=packed.encoder.fingerprint if packed.encoder is not None else "",
    )
    return Start(
        fingerprint=bundle.fingerprint,
        networks=[member.state_dict() for member in members],
        described=described,
        encoder=packed.encoder,
        text=packed.config.text,
        learned_until=cast("int | None", bundle.manifest.get("learned_until")),
    )
