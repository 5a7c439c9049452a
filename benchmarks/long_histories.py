"""What a step of training takes with histories of 10,000 clicks, beside the same network on 50: forward, backward, in one run.

    python benchmarks/long_histories.py [--clicks 50 10000] [--rows 256]

A network of width 64 with `soft` and `target` over a planted log: users with that many clicks each, requests of eight ads of a
catalogue of 20,000. The table of matches is made before training and is no part of a step. Rounds in rotation, medians.
"""

import argparse
import statistics
import time

import torch

from adrec.config.training.finetune import ModelSettings, UserEncoderSettings
from adrec.data.batches.blocks import make_blocks
from adrec.data.batches.collate import Batch, Entities, Texts
from adrec.models.net.ctr_model import CTRModel
from adrec.models.net.tasks import Task
from adrec.training.build import Dimensions, FeatureShape, build_model

ADS, CATEGORIES, TEXT, PER_REQUEST = 20_000, 200, 64, 8


def batch_of(clicks: int, rows: int, matches: int) -> Batch:
    """Rows of requests; all ads of the catalogue are in the batch, whatever the histories, so that only these differ."""
    generator = torch.Generator().manual_seed(0)
    contexts = rows // PER_REQUEST
    context = torch.arange(contexts).repeat_interleave(PER_REQUEST)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randint(0, ADS, shape, generator=generator)

    def entities(count: int, text: bool) -> Entities:
        category = torch.randint(1, CATEGORIES, (count, 1), generator=generator)
        vectors = Texts(torch.randn(count, TEXT, generator=generator) if text else None)
        categorical = category if text else torch.zeros(count, 0, dtype=torch.int64)
        return Entities(vectors, torch.zeros(count, 0), categorical, (), torch.zeros(count, dtype=torch.int64))

    none = torch.zeros(rows, 0)
    return Batch(
        ads=entities(ADS, True),
        users=entities(contexts, False),
        history=drawn(contexts, clicks),
        history_mask=torch.ones(contexts, clicks, dtype=torch.bool),
        history_hours=torch.arange(clicks, 0, -1.0).expand(contexts, -1),
        history_length=torch.full((contexts,), float(clicks)),
        skipped=torch.zeros(contexts, 1, dtype=torch.int64),
        skipped_mask=torch.zeros(contexts, 1, dtype=torch.bool),
        queries=Texts(None),
        context=context,
        blocks=make_blocks(context.numpy()),
        ad=drawn(rows),
        query=torch.zeros(rows, dtype=torch.int64),
        numeric=none,
        categorical=none.long(),
        lists=(),
        position=torch.zeros(rows, dtype=torch.int64),
        group=context,
        labels=torch.zeros(rows, 1),
        positive=torch.zeros(0, dtype=torch.int64),
        log_frequency=torch.zeros(rows),
        matches=torch.zeros(rows, matches),
    )


def network(dimensions: Dimensions, search: str) -> CTRModel:
    """The network with that search."""
    user = UserEncoderSettings.model_validate({"parts": ["soft", "target"], "search": search, "max_history": 10_000})
    settings = ModelSettings(width=64, hidden=[64, 32], user=user)
    return build_model(settings, dimensions, (Task("click"),), text_encoder=None, next_category=False).train()


def seconds(model: CTRModel, batch: Batch) -> float:
    """Of one step."""
    start = time.process_time()
    model.zero_grad()
    model(batch).logits.square().mean().backward()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clicks", type=int, nargs=2, default=[50, 10_000])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dimensions = Dimensions(TEXT, FeatureShape(), FeatureShape(cardinalities=(CATEGORIES,)), FeatureShape(), category=0)
    batches = [batch_of(clicks, options.rows, dimensions.match.width) for clicks in options.clicks]
    models = {search: network(dimensions, search) for search in ("none", "category", "hashed")}
    took: dict[tuple[str, int], list[float]] = {}
    for number in range(options.rounds + 1):
        for search, model in models.items():
            for clicks, batch in zip(options.clicks, batches, strict=True):
                one = seconds(model, batch)
                if number:  # the first round warms up
                    took.setdefault((search, clicks), []).append(one)
    few, many = options.clicks
    print(f"{'search':<10} {f'{few:,} clicks':>14} {f'{many:,} clicks':>14} {'ratio':>7}")
    for search in models:
        short, long = (statistics.median(took[search, clicks]) for clicks in options.clicks)
        print(f"{search:<10} {1000 * short:>11.0f} ms {1000 * long:>11.0f} ms {long / short:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
