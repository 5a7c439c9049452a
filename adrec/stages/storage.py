"""Commands on object storage: inputs are fetched into the local mirror, the command runs there, its output is published.

The finished output stays in the mirror with a note of what it was made from until it is published whole: the same command, run
again after a kill or a fault of the network, only goes on publishing.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import RenderableType

from adrec import __version__
from adrec.config.base import StageConfig, load_config
from adrec.config.cluster import TrainsOnCluster
from adrec.config.commands import command_of
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.tune import TuneConfig
from adrec.data.disk.outputs import RECALL, STORE, OutputKind, recall_file
from adrec.data.disk.writing import write_aside
from adrec.data.remote.fetching import fetch
from adrec.data.remote.publishing import bring_down, publish, publish_or_withdraw
from adrec.data.remote.stores import listed
from adrec.errors import ResourceError
from adrec.ranks import by_torchrun
from adrec.stages.writing import is_first_process, names_addresses, output_of, paths_of, writing
from adrec.terminal import Terminal
from adrec.urls import address_of, local_of, mirror


@dataclass(frozen=True)
class PublishedResult:
    """What an earlier run had made, and this one published."""

    output: str
    result: dict[str, Any]
    """of the earlier run"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return self.result

    def render(self) -> Iterable[RenderableType]:
        """One line."""
        yield f"{self.output}: published. An earlier run had made it, and was stopped before all of it was there."


def run_guarded(run: Callable[..., Any], config: StageConfig, terminal: Terminal) -> Any:
    """The result of `run(config, terminal)`; where the config names addresses, what they stand for is fetched and published."""
    if isinstance(config, TrainsOnCluster) and config.cluster is not None and not by_torchrun():
        from adrec.stages.training.on_cluster import train_on_cluster

        return train_on_cluster(run, config, terminal)
    if is_first_process() and names_addresses(config):
        return run_remotely(run, config, terminal)
    if by_torchrun() and names_addresses(config):  # another machine has a mirror of its own
        mirror().mkdir(parents=True, exist_ok=True)
        with FileLock(mirror() / ".fetching.lock"):
            _fetch_inputs(config, terminal)
    with writing(config, terminal):
        return run(config, terminal)


def run_remotely(run: Callable[..., Any], config: StageConfig, terminal: Terminal) -> Any:
    """The result of `run(config, terminal)`, with what its addresses stand for.

    Raises ResourceError where a store cannot be reached, DataError where an input is not there.
    """
    inputs = _fetch_inputs(config, terminal)
    output = output_of(config)
    address = address_of(output) if output is not None else None
    if output is None or address is None:
        with writing(config, terminal):
            return run(config, terminal)
    note = mirror() / "pending" / f"{hashlib.sha256(str(output).encode()).hexdigest()[:16]}.json"
    identity = [__version__, command_of(type(config)), config.model_dump(mode="json"), inputs]
    finished = _read(note, identity) if output.exists() else None
    beside = recall_file(output) if isinstance(config, RankConfig) else None

    def before(kind: OutputKind) -> None:
        if kind is STORE:
            raise ResourceError(f"{address}: a server's store must lie on this machine. Name a file, or use `redis`.")
        if finished is None:
            note.unlink(missing_ok=True)
            with terminal.progress(f"Looking at {address}"):
                bring_down(address, kind)
                if beside is not None:
                    bring_down(str(address_of(beside)), RECALL)

    with writing(config, terminal, before):
        result = PublishedResult(address, finished) if finished is not None else run(config, terminal)
        if finished is None:
            with write_aside(note) as aside:
                aside.write_text(json.dumps({"of": identity, "result": result.as_dict()}, default=str), encoding="utf-8")
        with terminal.progress(f"Publishing {address}", unit="files") as advance:
            if beside is not None:
                publish_or_withdraw(beside)
            publish(output, advance)
    note.unlink(missing_ok=True)
    return result


def fetched_config(address: str) -> Path:
    """The local copy of a config file in a store. Its relative paths are relative to its address."""
    scheme, _, rest = address.partition(":")
    address = f"{scheme}://{rest.lstrip('/')}"
    return fetch(address)[0].local


def _fetch_inputs(config: StageConfig, terminal: Terminal) -> list[list[str]]:
    """Fetch every input; address and identity of each file."""
    paths = paths_of(config)
    found: list[list[str]] = []
    with terminal.progress("Fetching", unit="files") as advance:
        found += _fetched(paths, advance)
        if isinstance(config, TuneConfig):  # the config that it varies names inputs of its own
            found += _fetched(paths_of(load_config(config.base, FinetuneConfig)), advance)
        if isinstance(config, EvaluateConfig) and (scored := address_of(config.scored)) is not None:
            # The candidate recall of ranked lists, where there is one, lies beside them.
            beside = address_of(recall_file(local_of(scored)))  # of a web server nothing can be listed
            found += _fetched([str(local_of(beside))] if beside is not None and listed(beside) else [], advance)
    return found


def _fetched(paths: Iterable[str], advance: Any) -> list[list[str]]:
    addresses = [address for path in paths if (address := address_of(path)) is not None]
    return [[str(local_of(file.address)), file.identity] for address in addresses for file in fetch(address, advance)]


def _read(note: Path, identity: list[Any]) -> dict[str, Any] | None:
    """What the run had to say that left its output to be published; None where there is none, or it was another run."""
    if not note.is_file():
        return None
    kept = json.loads(note.read_text(encoding="utf-8"))
    if kept["of"] != json.loads(json.dumps(identity, default=str)):
        return None
    result: dict[str, Any] = kept["result"]
    return result
