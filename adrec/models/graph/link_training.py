"""Training and judging a LinkModel: negatives by replacing either end, ranks among all entities but those known to be true.

# T links as (head, relation, tail), E entities
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.metrics.link_prediction import filtered_ranks
from adrec.models.graph.link_models import Kind, LinkModel

Longs = NDArray[np.int64]
_CELLS = 20_000_000
"""Numbers of a (batch, entities, width) tensor at once."""


@dataclass(frozen=True)
class LinkTraining:
    """How links are learned."""

    kind: Kind = "rotate"
    width: int = 64
    epochs: int = 200
    batch_links: int = 256
    learning_rate: float = 0.01
    loss: Literal["self_adversarial", "cross_entropy"] = "self_adversarial"
    negatives: int = 64
    """entities drawn a batch and end; with cross_entropy all are asked where there are no more than that"""
    margin: float = 9.0
    temperature: float = 1.0
    n3: float = 0.0


def train_links(
    links: Longs,
    *,
    entities: int,
    relations: int,
    settings: LinkTraining,
    seed: int,
    device: str | torch.device = "cpu",
    advance: Callable[[int], None] = lambda epochs: None,
) -> LinkModel:
    """A model that has learned the `links` (T, 3)."""
    generator = torch.Generator().manual_seed(seed)
    model = LinkModel(settings.kind, entities=entities, relations=relations, width=settings.width, generator=generator)
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    rows = torch.from_numpy(np.ascontiguousarray(links)).to(device)
    for _ in range(settings.epochs):
        for batch in torch.split(torch.randperm(len(rows), generator=generator), settings.batch_links):
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(_loss(model, rows[batch.to(device)], settings, entities, generator))
            optimizer.step()
        advance(1)
    return model.eval()


def link_ranks(model: LinkModel, links: Longs, known: Longs) -> NDArray[np.float64]:
    """(2 T,) ranks of the true tails, then of the true heads, of `links`, among all entities that make none of the `known`
    links (`links` among them); ties count half.
    """
    step = max(1, _CELLS // (len(model.entities) * (model.width if model.kind == "rotate" else 1)))
    ranks = []
    for end, (fixed, free) in enumerate((((0, 1), 2), ((2, 1), 0))):
        for start in range(0, len(links), step):
            some = links[start : start + step]
            asked = torch.from_numpy(np.ascontiguousarray(some)).to(model.entities.device)
            with torch.inference_mode():
                scores = model.tails(asked[:, 0], asked[:, 1]) if end == 0 else model.heads(asked[:, 1], asked[:, 2])
            ranks.append(
                filtered_ranks(scores.double().cpu().numpy(), some[:, free], some[:, fixed], known[:, fixed], known[:, free])
            )
    return np.concatenate(ranks) if ranks else np.zeros(0)


def _loss(model: LinkModel, links: Tensor, settings: LinkTraining, entities: int, generator: torch.Generator) -> Tensor:
    head, relation, tail = links.T
    own, losses = model.links(head, relation, tail), []
    for is_tail, true in ((True, tail), (False, head)):
        every = settings.loss == "cross_entropy" and entities <= settings.negatives
        drawn = None if every else torch.randint(entities, (settings.negatives,), generator=generator).to(links.device)
        scores = model.tails(head, relation, drawn) if is_tail else model.heads(relation, tail, drawn)
        if drawn is None:
            losses.append(nn.functional.cross_entropy(scores, true))
            continue
        others = scores.masked_fill(drawn == true[:, None], -1e9)
        if settings.loss == "cross_entropy":
            losses.append(-torch.log_softmax(torch.cat([own[:, None], others], -1), -1)[:, 0].mean())
        else:
            # Sun et al. 2019: negatives that the model takes for true weigh most.
            weights = torch.softmax(settings.temperature * others.detach(), -1)
            wrong = (weights * nn.functional.logsigmoid(-settings.margin - others)).sum(-1)
            losses.append(-(nn.functional.logsigmoid(settings.margin + own) + wrong).mean() / 2)
    total = torch.stack(losses).mean()
    return total + settings.n3 * model.cubes(head, relation, tail) if settings.n3 else total
