"""A bundle as the start of another training (`start_from`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from adrec.bundle import open_trusted
from adrec.inference.packing import unpack
from adrec.models.net.ensemble import Ensemble
from adrec.training.carrying import Described
from adrec.training.loop.start import Start


def open_start(path: Path, trusted_keys: Sequence[Path] = ()) -> Start:
    """What the bundle at `path` gives to a training. Raises BundleError where it is none, is of another version, or was signed
    by none of the keys, if any are named.
    """
    bundle = open_trusted(path, trusted_keys)
    packed = unpack(bundle)
    members = list(packed.model.members) if isinstance(packed.model, Ensemble) else [packed.model]
    described = Described(
        settings=packed.config.model,
        dimensions=packed.dimensions,
        features=packed.features,
        tasks=packed.tasks,
        seen_ads=packed.own_vectors("ads").ids,
        seen_users=packed.own_vectors("users").ids,
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
