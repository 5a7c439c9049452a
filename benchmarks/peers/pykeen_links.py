"""TransE, RotatE and ComplEx of PyKEEN beside ours, on the graphs that PyKEEN carries; run in an environment with both.

`python benchmarks/peers/pykeen_links.py --graphs nations umls`: both train alike (width, epochs, batches, Adam, loss,
negatives of either end) on the same training links and rank the same test links among all entities but those known to be true
from training, validation or test links. Ours is judged by ours, theirs by their RankBasedEvaluator. ComplEx learns by
cross-entropy over all entities at both ends (Lacroix et al. 2018), which PyKEEN calls `SymmetricLCWA`; the others by
self-adversarial negatives. `rotate_l2` is RotatE as PyKEEN has it, by the Euclidean norm of the gaps; `rotate` with the sum of
their moduli, as in the paper and here.
"""

import argparse
import json
from typing import Any

import numpy as np
import torch
from pykeen.datasets import get_dataset
from pykeen.losses import CrossEntropyLoss, NSSALoss
from pykeen.models import ERModel
from pykeen.nn.modules import ComplExInteraction, RotatEInteraction, TransEInteraction
from pykeen.pipeline import pipeline
from pykeen.utils import complex_normalize, ensure_complex, negative_norm

from adrec.metrics.link_prediction import hits_at, mean_reciprocal_rank
from adrec.models.graph.link_training import LinkTraining, link_ranks, train_links

WIDTH, BATCH, RATE, NEGATIVES, MARGIN = 64, 256, 0.01, 64, 9.0


class SumOfModuli(RotatEInteraction):
    """RotatE by the sum of the moduli of the gaps, equation 3 of Sun et al. 2019."""

    def forward(self, h: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h, r, t = ensure_complex(h, r, t)
        return negative_norm(h * r - t, p=1, power_norm=False)


INTERACTIONS = {
    "transe": lambda: TransEInteraction(p=1),
    "rotate": SumOfModuli,
    "rotate_l2": RotatEInteraction,
    "complex": ComplExInteraction,
}


def theirs(kind: str, graph: Any, epochs: int, seed: int) -> dict[str, float]:
    """Filtered MRR and Hits@10 of PyKEEN's trained model."""
    is_complex = kind != "transe"
    shape = {"shape": WIDTH // 2, "dtype": torch.cfloat} if is_complex else {"shape": WIDTH}
    entities = {**shape, "initializer": _started}
    relations = dict(entities)
    if kind.startswith("rotate"):
        relations |= {"initializer": "init_phases", "constrainer": complex_normalize}
    is_asked = kind == "complex"
    how: dict[str, Any] = {"training_loop": "symmetriclcwa"} if is_asked else {
        "training_loop": "slcwa", "negative_sampler_kwargs": {"num_negs_per_pos": 2 * NEGATIVES},
    }  # fmt: skip
    found = pipeline(
        training=graph.training, validation=graph.validation, testing=graph.testing, model=ERModel,
        model_kwargs={
            "interaction": INTERACTIONS[kind](), "entity_representations_kwargs": entities,
            "relation_representations_kwargs": relations,
            "loss": CrossEntropyLoss() if is_asked else NSSALoss(margin=MARGIN, adversarial_temperature=1.0),
        },
        optimizer="Adam", optimizer_kwargs={"lr": RATE},
        training_kwargs={"num_epochs": epochs, "batch_size": BATCH, "use_tqdm": False},
        evaluator="RankBasedEvaluator", evaluator_kwargs={"filtered": True}, evaluation_kwargs={"use_tqdm": False},
        random_seed=seed, device="cpu", **how,
    )  # fmt: skip
    return {name: float(found.get_metric(f"both.realistic.{of}")) for name, of in NAMES.items()}


NAMES = {"mrr": "inverse_harmonic_mean_rank", "hits@10": "hits_at_10"}


def ours(kind: str, graph: Any, epochs: int, seed: int) -> dict[str, float]:
    """The same of ours."""
    train, valid, test = (part.mapped_triples.numpy().astype(np.int64) for part in _parts(graph))
    settings = LinkTraining(
        kind=kind.removesuffix("_l2"), width=WIDTH, epochs=epochs, batch_links=BATCH, learning_rate=RATE,
        loss="cross_entropy" if kind == "complex" else "self_adversarial",
        negatives=graph.num_entities if kind == "complex" else NEGATIVES, margin=MARGIN,
    )  # fmt: skip
    model = train_links(train, entities=graph.num_entities, relations=graph.num_relations, settings=settings, seed=seed)
    ranks = link_ranks(model, test, np.concatenate([train, valid, test]))
    return {"mrr": mean_reciprocal_rank(ranks), "hits@10": hits_at(ranks, 10)}


def main() -> None:
    """A line of JSON a graph and model: means and deviations over the seeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--graphs", nargs="+", default=["nations", "umls"])
    parser.add_argument("--models", nargs="+", default=["transe", "rotate", "complex"], choices=list(INTERACTIONS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    given = parser.parse_args()
    for name in given.graphs:
        graph = get_dataset(dataset=name)
        for kind in given.models:
            told: dict[str, Any] = {"graph": name, "model": kind, "epochs": given.epochs}
            for side, train in (("ours", ours), ("theirs", theirs)):
                made = [train(kind, graph, given.epochs, seed) for seed in range(given.seeds)]
                told[side] = {
                    metric: [round(float(of([run[metric] for run in made])), 4) for of in (np.mean, _deviation)]
                    for metric in NAMES
                }
            print(json.dumps(told), flush=True)


def _deviation(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _parts(graph: Any) -> tuple[Any, Any, Any]:
    return graph.training, graph.validation, graph.testing


def _started(tensor: torch.Tensor) -> torch.Tensor:
    """Our start: each number, of complex ones both parts, drawn alike."""
    bound = (6 / WIDTH) ** 0.5
    torch.nn.init.uniform_(torch.view_as_real(tensor) if tensor.is_complex() else tensor, -bound, bound)
    return tensor


if __name__ == "__main__":
    main()
