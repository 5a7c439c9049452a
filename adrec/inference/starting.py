"""Bundles as the start of another training (`start_from`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from adrec.bundle import Bundle, open_trusted
from adrec.inference.click_model import ClickModel
from adrec.inference.packing import unpack
from adrec.models.net.ensemble import Ensemble
from adrec.training.carrying import Described
from adrec.training.loop.start import Source, Start


def open_start(paths: Sequence[Path], trusted_keys: Sequence[Path] = ()) -> Start:
    """What the bundles at `paths` give to a training. Raises BundleError where one is none, is of another version, or was
    signed by none of the keys, if any are named.
    """
    bundles = [open_trusted(path, trusted_keys) for path in paths]
    first = unpack(bundles[0])
    others = (unpack(bundle) for bundle in bundles[1:])  # one after the other: their encoders are let go
    sources = [
        _source(first, bundles[0]),
        *(_source(packed, bundle) for packed, bundle in zip(others, bundles[1:], strict=True)),
    ]
    until = [cast(int, bundle.manifest["learned_until"]) for bundle in bundles if bundle.manifest.get("learned_until")]
    return Start(
        fingerprint="+".join(bundle.fingerprint for bundle in bundles),
        sources=sources,
        calibrations=first.calibrations if first.hybrid.kind == "none" else {},
        encoder=first.encoder,
        text=first.config.text,
        learned_until=max(until, default=None),
    )


def _source(packed: ClickModel, bundle: Bundle) -> Source:
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
    return Source(str(bundle.path), [member.state_dict() for member in members], described)
