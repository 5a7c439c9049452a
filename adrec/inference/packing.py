"""A click model in and out of a bundle folder: the one place that knows which file holds what.

A bundle may come from a stranger: nothing in it names a file outside it, and what it claims to be is held against the sizes
of its files before memory is taken.
"""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from adrec.bundle import Bundle, write_json
from adrec.config.base import load_stored_config, save_config, stored_section
from adrec.config.data.preprocess import TextSettings
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.arrays import combined
from adrec.data.disk.tables import read_table, write_table
from adrec.data.features import FeatureSet
from adrec.data.graph.entity_vectors import EntityVectors
from adrec.data.graph.links import Graph
from adrec.data.prepared import Prepared
from adrec.errors import BundleError, DataError
from adrec.inference.click_model import ClickModel
from adrec.models.baselines.suite import load_all, save_all
from adrec.models.blend.calibration import Calibration
from adrec.models.blend.hybrid import Hybrid
from adrec.models.blend.slots import FILE as SLOTS
from adrec.models.blend.slots import SlotEffects
from adrec.models.media.media_reader import MEDIA, MediaReader
from adrec.models.net.ensemble import ClickNetwork, Ensemble
from adrec.models.net.tasks import Task
from adrec.models.text.text_encoder import TextEncoder, load_text_encoder
from adrec.prepare.own_files import LogForm
from adrec.schema import TableSpec, entity_tables
from adrec.training.build import Dimensions, build_model

ENCODER = "encoder"
ENTITY_VECTORS = "entity_vectors"
BASELINES = "baselines"
HYBRID = "hybrid"
RETRIEVAL = "retrieval.json"
ENCODER_PREFIX = "text_encoder."


def pack(folder: Path, packed: ClickModel, metrics: dict[str, Any]) -> None:
    """Write all files of the bundle but `bundle.json` into `folder`."""
    save_config(_without_cache(packed.config), folder / "config.yaml")
    write_json(
        {
            "impressions": packed.features["impressions"].columns,
            "ads": packed.features["ads"].columns,
            "users": packed.features["users"].columns,
            "dimensions": packed.dimensions.to_json(),
            "tasks": [task.to_json() for task in packed.tasks],
            "text": _save_text(packed.text, folder).model_dump(mode="json"),
            "log": packed.form.to_json(),
            **{reader.spec.STORED: reader.to_json() for reader in packed.media.values()},
        },
        folder / "schema.json",
    )
    write_json({name: fitted.to_json() for name, fitted in packed.features.items()}, folder / "features.json")
    save_network(folder, packed.model)
    if packed.encoder is not None:
        packed.encoder.save(folder / ENCODER)
    for reader in packed.media.values():
        reader.encoder.save(folder / reader.spec.FOLDER)
    write_json({name: fitted.to_json() for name, fitted in packed.calibrations.items()}, folder / "calibration.json")
    kinds = pa.array(np.repeat(["ad", "user"], [packed.seen_ads.num_rows, packed.seen_users.num_rows]))
    write_table(pa.concat_tables([packed.seen_ads, packed.seen_users]).add_column(0, "kind", kinds), folder / "seen.parquet")
    for name, vectors in packed.entity_vectors.items():
        (folder / ENTITY_VECTORS / quote(name, safe="")).mkdir(parents=True)
        vectors.save(folder / ENTITY_VECTORS / quote(name, safe=""))
    for spec in entity_tables():
        if spec.name in packed.tables:
            (folder / spec.bundle_file).parent.mkdir(exist_ok=True)
            write_table(packed.tables[spec.name], folder / spec.bundle_file)
    save_all(packed.baselines, folder / BASELINES)
    if packed.hybrid.kind != "none":
        packed.hybrid.save(folder / HYBRID)
    if packed.shares:
        write_json({"shares": packed.shares}, folder / RETRIEVAL)
    if packed.slots is not None:
        write_json(packed.slots.to_json(), folder / SLOTS)
    write_json(metrics, folder / "metrics.json")


def save_network(folder: Path, network: ClickNetwork) -> None:
    """Write `model.safetensors`: all weights but the text encoder's."""
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.startswith(ENCODER_PREFIX)
    }
    save_file(state, folder / "model.safetensors")


def how_to_read(bundle: Bundle) -> tuple[LogForm, dict[str, FeatureSet]]:
    """How new files of the log behind a bundle are read, and which of their columns it needs, by table: without its weights."""
    try:
        log = bundle.json("schema.json").get("log")
        features = {name: FeatureSet.from_json(fitted) for name, fitted in bundle.json("features.json").items()}
        return LogForm.from_json(log) if log is not None else LogForm(), features
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _other_version(bundle, str(error).splitlines()[0]) from None


def unpack(bundle: Bundle) -> ClickModel:
    """The click model of an opened bundle. Raises BundleError where a file does not fit this version."""
    try:
        config = _without_cache(load_stored_config(bundle.file("config.yaml"), FinetuneConfig, command="finetune"))
        schema = bundle.json("schema.json")
        dimensions = Dimensions.from_json(schema["dimensions"])
        tasks = tuple(Task.from_json(task) for task in schema["tasks"])
        form, features = how_to_read(bundle)
        calibrations = {name: Calibration.from_json(fitted) for name, fitted in bundle.json("calibration.json").items()}
        text = _load_text(bundle, schema["text"])
        retrieval = bundle.json(RETRIEVAL) if bundle.has(RETRIEVAL) else {"shares": {}}
        shares = {str(name): max(float(share), 0.0) for name, share in retrieval["shares"].items()}
        slots = SlotEffects.load(bundle.file(SLOTS)) if bundle.has(SLOTS) else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _other_version(bundle, str(error).splitlines()[0]) from None
    encoder = load_text_encoder(str(bundle.path / ENCODER)) if bundle.has(f"{ENCODER}/") else None
    media = {
        setting: MediaReader.from_json(spec, schema[spec.STORED], spec.LOAD(str(bundle.path / spec.FOLDER)))
        for setting, spec in MEDIA.items()
        if schema.get(spec.STORED) is not None
    }
    trained = config.text.train != "frozen" and encoder is not None
    with torch.device("meta"), _Undrawn():  # shapes alone: what is claimed may be larger than any memory
        _refuse_other_shapes(bundle, _network(config, dimensions, tasks, encoder=None))
    model = _network(config, dimensions, tasks, encoder=encoder if trained else None)
    missing, unexpected = model.load_state_dict(load_file(bundle.file("model.safetensors")), strict=False)
    missing = [name for name in missing if not name.startswith(ENCODER_PREFIX)]
    if missing or unexpected:
        raise BundleError(f"{bundle.path}: model.safetensors does not fit config.yaml ({(missing + unexpected)[0]}).")
    seen = _bounded_table(bundle, "seen.parquet")
    kind = np.asarray(seen["kind"].to_numpy(zero_copy_only=False))
    seen = seen.drop_columns(["kind"])
    return ClickModel(
        config=config,
        features=features,
        dimensions=dimensions,
        tasks=tasks,
        model=model.eval(),
        encoder=encoder,
        calibrations=calibrations,
        seen_ads=seen.filter(pa.array(kind == "ad")),
        seen_users=seen.filter(pa.array(kind == "user")),
        text=text,
        form=form,
        baselines=load_all(bundle.path / BASELINES) if bundle.has(f"{BASELINES}/") else {},
        tables=_packed_tables(bundle),
        shares=shares,
        hybrid=Hybrid.load(bundle.path / HYBRID) if bundle.has(f"{HYBRID}/") else Hybrid(),
        slots=slots,
        media=media,
        entity_vectors=_entity_vectors(bundle, features["ads"]),
    )


def open_entity_vectors(prepared: Prepared) -> dict[str, EntityVectors]:
    """What the vectors of a prepared folder's ads were made of. Raises DataError where it is other by now."""
    made = prepared.config.features.ads.vectors if prepared.config is not None else []
    held = {item.column: EntityVectors.open(item.entities) for item in made if item.entities is not None}
    spaces = {item.name: item.space for item in prepared.features()["ads"].vectors}
    for name, vectors in held.items():
        if not spaces[name].endswith(vectors.fingerprint[:16]):
            raise DataError(
                f"{prepared.path}: '{name}' was made of other vectors of entities than features.ads.vectors names now. "
                "Run 'adrec preprocess' again."
            )
    return held


def _entity_vectors(bundle: Bundle, ads: FeatureSet) -> dict[str, EntityVectors]:
    folders = {item.name: f"{ENTITY_VECTORS}/{quote(item.name, safe='')}" for item in ads.vectors}
    try:
        return {name: EntityVectors.open(bundle.path / path) for name, path in folders.items() if bundle.has(f"{path}/")}
    except DataError as error:
        raise BundleError(f"{error} Run 'adrec finetune' again.") from None


def _network(
    config: FinetuneConfig, dimensions: Dimensions, tasks: tuple[Task, ...], *, encoder: TextEncoder | None
) -> ClickNetwork:
    has_categories = config.loss.next_category > 0
    members = [
        build_model(config.model, dimensions, tasks, text_encoder=encoder, next_category=has_categories)
        for _ in range(config.seeds if config.ensemble else 1)
    ]
    return members[0] if len(members) == 1 else Ensemble(members)  # as `finetune` joins them


class _Undrawn(TorchFunctionMode):
    """Within it tensors that have no memory are not drawn: torch imports its compiler for that, which takes seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.init.normal_:
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _refuse_other_shapes(bundle: Bundle, claimed: ClickNetwork) -> None:
    """Raises BundleError where the file of weights, which is as large as it is, holds other shapes than the config claims."""
    try:
        with safe_open(bundle.file("model.safetensors"), framework="pt") as stored:
            held = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BundleError(f"{bundle.path}: model.safetensors is damaged ({error}). Copy the whole folder again.") from None
    for name, tensor in claimed.state_dict().items():
        if tuple(tensor.shape) != held.get(name, tuple(tensor.shape)):
            shapes = f"{name} is {held[name]}, expected {tuple(tensor.shape)}"
            raise BundleError(f"{bundle.path}: not written by this version ({shapes}). Run 'adrec finetune' again.")
        if name not in held and not name.endswith("position_bias.counts"):  # which bundles of before do without
            raise BundleError(f"{bundle.path}: model.safetensors does not fit config.yaml ({name}).")


def packed_tables(prepared: Prepared) -> dict[str, pa.Table]:
    """The tables of a prepared folder that a bundle takes in; links say then which of their names are ads."""
    tables = {spec.name: prepared.table(spec) for spec in prepared.tables() if spec.packed}
    graph = Graph.of(tables, combined(prepared.ads()["ad_id"]))
    return tables if graph is None else tables | graph.tables()


def _packed_tables(bundle: Bundle) -> dict[str, pa.Table]:
    specs = [spec for spec in entity_tables() if spec.packed and bundle.has(spec.bundle_file)]
    return {spec.name: _bounded_table(bundle, spec.bundle_file, spec.stored) for spec in specs}


def _bounded_table(bundle: Bundle, name: str, spec: TableSpec | None = None) -> pa.Table:
    """A table with a different id in each row: a row takes a byte at the least. Raises BundleError."""
    file = bundle.file(name)
    try:
        rows = pq.read_metadata(file).num_rows
    except (pa.ArrowException, OSError) as error:
        raise BundleError(f"{file}: cannot be read ({str(error).splitlines()[0]}). Copy the whole folder again.") from None
    if rows > file.stat().st_size:
        raise BundleError(f"{file}: claims {rows:,} rows, more than it can hold. Do not trust this bundle.")
    try:
        return read_table(file, spec)
    except DataError as error:
        raise BundleError(f"{error} Run 'adrec finetune' again.") from None


def _without_cache(config: FinetuneConfig) -> FinetuneConfig:
    """Where vectors were cached is a matter of the machine that trained."""
    return config.model_copy(update={"text": config.text.model_copy(update={"cache": None})})


_TEXT_FILES = {"extra_stop_words": "stop_words.txt", "user_dictionary": "user_dictionary.txt"}
"""Setting → file of the bundle that the setting's file becomes."""


def _save_text(settings: TextSettings, folder: Path) -> TextSettings:
    """Copy the files that the settings name; the settings then name the copies."""
    named = {}
    for setting, name in _TEXT_FILES.items():
        source = getattr(settings, setting)
        if source is not None:
            shutil.copyfile(source, folder / name)
            named[setting] = Path(name)
    return settings.model_copy(update=named)


def _load_text(bundle: Bundle, stored: dict[str, Any]) -> TextSettings:
    """The settings with the bundle's own files. Raises BundleError where they name others."""
    named = {}
    for setting, name in _TEXT_FILES.items():
        if stored.get(setting) is not None:
            if stored[setting] != name:
                raise BundleError(
                    f"{bundle.path}: text.{setting} names a file outside the bundle. Run 'adrec finetune' again to take it in."
                )
            named[setting] = str(bundle.file(name).resolve())
    where = str(bundle.path / "schema.json")
    return stored_section({**stored, **named}, TextSettings, where=where, command="finetune")


def _other_version(bundle: Bundle, reason: str) -> BundleError:
    return BundleError(f"{bundle.path}: not written by this version ({reason}). Run 'adrec finetune' again.")


def text_settings(prepared: Prepared) -> TextSettings:
    """How the prepared folder's texts were made; the defaults where it does not say."""
    return prepared.config.text if prepared.config is not None else TextSettings()


def log_form(prepared: Prepared) -> LogForm:
    """How the prepared folder's log was written; nothing where it does not say."""
    return LogForm.of(prepared.config, prepared.has) if prepared.config is not None else LogForm()
