"""What a step costs where ten thousand, and ten million, ads or users have a vector of their own: time, and bytes each.

    python benchmarks/identities.py [--ids 10000 1000000 10000000] [--optimizers rowwise]

A step encodes 1,024 of them, drawn anew, by a vector of width 32 each, and moves the weights: forward, backward, clipping and
optimiser of that part of a network, in one thread. Processor time, medians; `model.identity_optimizer` names the optimizers.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from adrec.data.batches.collate import Entities, Texts
from adrec.models.net.entity_encoder import EntityEncoder
from adrec.models.net.fields import Fields
from adrec.training.loop.optimizer import configure_adamw
from adrec.training.loop.row_shards import tables_by_rows
from adrec.training.loop.trainer import CLIP_NORM

WIDTH, ROWS = 32, 1_024


def encoder(ids: int, kind: str) -> EntityEncoder:
    """What reads `ids` own vectors."""
    fields = Fields(numeric=0, cardinalities=(), list_cardinalities=(), width=WIDTH)
    shape = {"text_width": 0, "fields": fields, "width": WIDTH, "identity_dropout": 0.2, "dropout": 0.0}
    return EntityEncoder(**shape, identities=ids, by_rows=kind == "rowwise").train()


def drawn(ids: int, generator: torch.Generator) -> Entities:
    """1,024 of them."""
    codes = torch.randint(1, ids + 1, (ROWS,), generator=generator)
    none = torch.zeros(ROWS, 0)
    return Entities(Texts(None), none, none.long(), (), codes)


def measure(ids: int, kind: str, steps: int) -> tuple[float, float]:
    """Median seconds of a step; bytes of weights, gradient and state for each of them."""
    model, generator = encoder(ids, kind), torch.Generator().manual_seed(0)
    optimizer = configure_adamw([(model, 1e-3)], total_steps=1000, weight_decay=0.1)["optimizer"]
    apart = {id(table) for table in tables_by_rows(model).values()}
    took = []
    for number in range(steps + 2):
        entities = drawn(ids, generator)
        start = time.process_time()
        optimizer.zero_grad()
        model(entities, None).square().mean().backward()
        nn.utils.clip_grad_norm_([weights for weights in model.parameters() if id(weights) not in apart], CLIP_NORM)
        optimizer.step()
        if number > 1:  # the first ones make the state
            took.append(time.process_time() - start)
    assert model.identity is not None
    table = model.identity.weight
    assert isinstance(table, nn.Parameter)
    held = [table, *(() if table.grad is None or table.grad.is_sparse else (table.grad,)), *optimizer.state[table].values()]
    return statistics.median(took), sum(tensor.numel() * tensor.element_size() for tensor in held) / ids


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument("--optimizers", nargs="+", default=["rowwise"], choices=["rowwise", "adamw"])
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| optimizer | vectors | a step | of the first | bytes each |\n| --- | --- | --- | --- | --- |")
    for kind in options.optimizers:
        first = 0.0
        for ids in options.ids:
            seconds, size = measure(ids, kind, options.steps)
            first = first or seconds
            print(f"| {kind} | {ids:,} | {1e3 * seconds:.2f} ms | {seconds / first:.2f} | {size:.0f} |", flush=True)


if __name__ == "__main__":
    main()
