"""Masked language modelling: adrec's packed steps beside a plain transformers loop, the same model, in turns.

    python benchmarks/pretrain_packing.py --prepared runs/mind/prepared --size tiny --steps 20

The plain loop is the usual one: shuffle, pad each batch to its longest text, `BertForMaskedLM(labels=...)`, backward, fused
AdamW. Both take batches of about the same number of real tokens; tokens/s counts real tokens only. `packed, whole head` is
adrec's packing with the vocabulary projected at every position, which tells the two gains apart.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional

from adrec.data.text.corpus import open_corpus, ordinary_ids
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import new_language_model
from adrec.training.objectives.mlm import Mlm, MlmFeed


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepared", type=Path, default=None, help="prepared folder; without it, titles of random words")
    parser.add_argument("--size", default="tiny", choices=["tiny", "mini", "small", "base"])
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--texts", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        prepared = options.prepared or random_world(Path(cache) / "prepared", options.texts)
        tokenizer = load_tokenizer(prepared / "tokenizer")
        corpus = open_corpus(
            prepared / "corpus.parquet", tokenizer, max_tokens=64, cache=Path(cache) / "tokens", limit=options.texts
        )
        measure(options, corpus, tokenizer)


def measure(options: argparse.Namespace, corpus: object, tokenizer: object) -> None:
    """Steps of the three ways in turns."""
    torch.manual_seed(0)
    model = new_language_model(options.size, tokenizer, max_tokens=64)
    ids = {"mask_id": tokenizer.mask_token_id, "pad_id": tokenizer.pad_token_id, "ordinary_ids": ordinary_ids(tokenizer)}
    packed = MlmFeed(corpus, np.arange(len(corpus)), **ids, pack_tokens=128, batch_tokens=options.batch_tokens)
    plain = MlmFeed(corpus, np.arange(len(corpus)), **ids, pack_tokens=128, batch_tokens=options.batch_tokens, packing=False)
    ways = {
        "plain transformers": SimpleNamespace(feed=plain, loss=whole_head_padded),
        "packed, whole head": SimpleNamespace(feed=packed, loss=whole_head),
        "adrec": SimpleNamespace(feed=packed, loss=Mlm()),
    }
    for way in ways.values():
        way.model = copy.deepcopy(model).train()
        way.optimizer = torch.optim.AdamW(way.model.parameters(), lr=1e-4, fused=True)
        way.items, way.seconds, way.tokens, way.slots = iter(way.feed.plan(0)), 0.0, 0, 0
    for number in range(options.steps + 2):
        for way in ways.values():
            item = next(way.items)
            began = time.perf_counter()
            batch = way.feed.collate(item, np.random.default_rng([0, number]))
            way.loss(way.model, batch).backward()
            torch.nn.utils.clip_grad_norm_(way.model.parameters(), 1.0)
            way.optimizer.step()
            way.optimizer.zero_grad()
            if number >= 2:  # the first two warm up
                way.seconds += time.perf_counter() - began
                way.tokens += int(batch.real)
                way.slots += batch.tokens.numel()
    print(f"{options.size}, {len(corpus):,} texts, {options.steps} steps each in turns, {torch.get_num_threads()} threads")
    reference = ways["plain transformers"].tokens / ways["plain transformers"].seconds
    for name, way in ways.items():
        speed = way.tokens / way.seconds
        print(
            f"{name:20} {speed:10,.0f} real tokens/s  x{speed / reference:.2f}  padding {1 - way.tokens / way.slots:6.1%}"
            f"  {way.tokens / options.steps:,.0f} tokens a step"
        )


def whole_head_padded(model: torch.nn.Module, batch: object) -> torch.Tensor:
    """Hugging Face's own forward and loss on padded rows."""
    labels = torch.full_like(batch.tokens, -100)
    labels.view(-1)[batch.places] = batch.labels
    return model.model(input_ids=batch.tokens, attention_mask=(batch.texts >= 0).long(), labels=labels).loss


def whole_head(model: torch.nn.Module, batch: object) -> torch.Tensor:
    """Packed, but with logits at every position."""
    logits = model.logits(model(batch.tokens, batch.texts, batch.positions).flatten(0, 1))
    return functional.cross_entropy(logits[batch.places], batch.labels)


def random_world(folder: Path, count: int) -> Path:
    """Titles of random words, as long as news titles are: 10.6 words on average."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from adrec.prepare.text.tokenizer import train_tokenizer

    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = ["".join(rng.choice(letters, size)) for size in rng.integers(3, 9, 12_000)]
    sizes = rng.normal(10.6, 3.5, count).clip(3, 24).astype(int)
    words = rng.zipf(1.3, sizes.sum()).clip(max=12_000) - 1
    ends = np.cumsum(sizes)
    titles = [" ".join(vocabulary[w] for w in words[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    folder.mkdir()
    held_out = np.zeros(count, bool)
    held_out[:1] = True
    table = pa.table({"text": titles, "language": ["en"] * count, "kind": ["ad"] * count, "held_out": held_out})
    pq.write_table(table, folder / "corpus.parquet")
    train_tokenizer(folder / "corpus.parquet", folder / "tokenizer", kind="wordpiece", vocab_size=12_000)
    return folder


if __name__ == "__main__":
    main()
