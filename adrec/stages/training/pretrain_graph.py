"""`adrec pretrain-graph`: links of a prepared folder → vectors of its entities, judged on links held out."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table

from adrec.config.base import save_config
from adrec.config.training.pretrain_graph import PretrainGraphConfig
from adrec.data.arrays import combined
from adrec.data.device import resolve_device
from adrec.data.disk.outputs import ENTITY_VECTORS
from adrec.data.disk.tables import write_table
from adrec.data.disk.writing import folder_aside
from adrec.data.graph.entity_vectors import EntityVectors
from adrec.data.graph.links import Graph
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import DataError
from adrec.metrics.link_prediction import hits_at, mean_reciprocal_rank
from adrec.models.graph.link_training import LinkTraining, link_ranks, train_links
from adrec.terminal import Terminal

Longs = NDArray[np.int64]
_JUDGED = 5_000
"""Links that are judged: each is held against all entities, twice."""


@dataclass(frozen=True)
class PretrainGraphResult:
    """What was learned."""

    output: str
    entities: int
    relations: int
    links: int
    held_out: int
    mrr: float | None
    """filtered, both ends, realistic ranks; None where nothing was held out"""
    hits_at_1: float | None
    hits_at_3: float | None
    hits_at_10: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return vars(self)

    def render(self) -> Iterable[RenderableType]:
        """A small table."""
        table = Table(show_header=False, title=f"Learned {self.links:,} links in {self.seconds:.1f} s", title_justify="left")
        table.add_row("entities", f"{self.entities:,}")
        table.add_row("relations", f"{self.relations:,}")
        if self.mrr is not None:
            table.add_row("links held out", f"{self.held_out:,}")
            for name, value in (("MRR, filtered", self.mrr), ("Hits@1", self.hits_at_1), ("Hits@3", self.hits_at_3),
                                ("Hits@10", self.hits_at_10)):  # fmt: skip
                table.add_row(name, f"{value:.4f}")
        table.add_row("output", self.output)
        yield table


def run(config: PretrainGraphConfig, terminal: Terminal) -> PretrainGraphResult:
    """Train on all links but those held out, judge by these, and write what was judged."""
    began = time.monotonic()
    prepared = open_prepared(config.prepared)
    graph, links, nodes = _links(prepared, with_ads=config.ads)
    train, test = _held_out(links, config.test_fraction, config.seed)
    settings = LinkTraining(
        kind=config.model, width=config.width, epochs=config.epochs, batch_links=config.batch_links,
        learning_rate=config.learning_rate, negatives=config.negatives, margin=config.margin, n3=config.n3,
        loss=config.loss if config.loss != "auto" else "cross_entropy" if config.model == "complex" else "self_adversarial",
    )  # fmt: skip
    with terminal.progress("Learning links", config.epochs, unit="epochs") as advance:
        model = train_links(
            train, entities=nodes, relations=len(graph.relations), settings=settings, seed=config.seed,
            device=resolve_device(config.device), advance=advance,
        )  # fmt: skip
    ranks = link_ranks(model, test[:_JUDGED], links)
    figures = {
        "mrr": mean_reciprocal_rank(ranks) if len(ranks) else None,
        **{f"hits_at_{k}": hits_at(ranks, k) if len(ranks) else None for k in (1, 3, 10)},
    }
    result = PretrainGraphResult(
        output=str(config.output), entities=len(graph.entities), relations=len(graph.relations), links=len(train),
        held_out=len(test[:_JUDGED]), seconds=time.monotonic() - began, **figures,
    )  # fmt: skip
    vectors = model.entities.detach()[: len(graph.entities)].float().cpu().numpy()
    with folder_aside(config.output, ENTITY_VECTORS) as folder:
        EntityVectors(graph.entities, vectors).save(folder)
        turns = model.relations.detach().float().cpu().numpy()
        column = pa.FixedSizeListArray.from_arrays(pa.array(turns.reshape(-1)), turns.shape[1])
        write_table(pa.table({"relation": graph.relations, "vector": column}), folder / "relations.parquet")
        (folder / "metrics.json").write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
        save_config(config, folder / "config.yaml")
    return result


def _links(prepared: Prepared, *, with_ads: bool) -> tuple[Graph, Longs, int]:
    """The graph, its distinct links, and how many nodes they name: entities, then ads. Raises DataError where there is none."""
    tables = {spec.name: prepared.table(spec) for spec in prepared.tables() if spec.packed}
    graph = Graph.of(tables, combined(prepared.ads()["ad_id"]))
    if graph is None:
        raise DataError(
            f"{prepared.path}: holds no links. Give the source tables `links` or `ad_links` and run 'adrec preprocess' again."
        )
    links, nodes = graph.links, len(graph.entities)
    if with_ads:
        links = np.concatenate([links, graph.ad_links + np.array([nodes, 0, 0])])
        nodes += len(graph.ads)
    links = np.unique(links, axis=0)
    if len(links) < 2:
        raise DataError(f"{prepared.path}: holds {len(links)} links, too few to learn from. Set `ads` to true, or give more.")
    return graph, links, nodes


def _held_out(links: Longs, fraction: float, seed: int) -> tuple[Longs, Longs]:
    """Links to learn from, and to judge by: of these every entity and relation has another link that is learned."""
    order = np.random.default_rng(seed).permutation(len(links))
    drawn, left = links[order[: int(len(links) * fraction)]], links[order[int(len(links) * fraction) :]]
    nodes, relations = np.unique(left[:, [0, 2]]), np.unique(left[:, 1])
    known = np.isin(drawn[:, [0, 2]], nodes).all(axis=1) & np.isin(drawn[:, 1], relations)
    return np.concatenate([left, drawn[~known]]), drawn[known]
