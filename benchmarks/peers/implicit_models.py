"""ALS, BPR and item neighbours of implicit on the sequences of `leaderboard.py`; run in an environment with implicit.

Settings are chosen on the newest tenth of the training sequences: their last item is held out. Test histories are nobody that
was trained: ALS folds them in, the neighbours score them; BPR cannot, and is left out.
"""

import sys
from pathlib import Path

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from scipy.sparse import csr_matrix

FADES = (0.6, 0.8, 0.9, 1.0)  # weight of a click for each later one


def matrix(values: np.ndarray, offsets: np.ndarray, ads: int, fade: float = 1.0) -> csr_matrix:
    """(users, ads) with the newest click at 1 and each one before it faded."""
    lengths = np.diff(offsets)
    back = np.repeat(offsets[1:], lengths) - 1 - np.arange(len(values))
    return csr_matrix(
        (fade**back, (np.repeat(np.arange(len(lengths)), lengths), values)), (len(lengths), ads), dtype=np.float32
    )


def ranks(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(N,) place of the target among all, 1 the first, ties in the middle."""
    own = scores[np.arange(len(target)), target][:, None]
    return (scores > own).sum(1) + 0.5 * ((scores == own).sum(1) - 1) + 1


def scores_of(model: object, asked: csr_matrix) -> np.ndarray:
    if hasattr(model, "item_factors"):
        return np.asarray(model.recalculate_user(np.arange(asked.shape[0]), asked) @ model.item_factors.T)
    return np.asarray((asked @ model.similarity.T).todense())


def candidates() -> dict[str, list[object]]:
    als = [
        AlternatingLeastSquares(factors=factors, regularization=strength, alpha=alpha, iterations=15, random_state=1)
        for factors in (64, 128) for strength in (0.1, 1.0, 10.0) for alpha in (1.0, 10.0)
    ]  # fmt: skip
    near = [make(K=count) for make in (CosineRecommender, TFIDFRecommender, BM25Recommender) for count in (100, 500)]
    return {"als": als, "neighbours": near}


def main(folder: Path, seeds: int) -> None:
    given = np.load(folder / "sequences.npz")
    values, offsets, ads = given["values"], given["offsets"], int(given["ads"])
    later = int(0.9 * (len(offsets) - 1))  # users come in the order of their last row
    held = np.arange(later, len(offsets) - 1)
    keep = np.ones(len(values), dtype=bool)
    keep[offsets[1:][held] - 1] = False
    shorter = np.concatenate([[0], np.cumsum(np.diff(offsets) - np.isin(np.arange(len(offsets) - 1), held))])
    for name, models in candidates().items():
        found = []
        for model in models:
            for fade in FADES:
                model.fit(matrix(values[keep], shorter, ads), show_progress=False)
                asked = matrix(values[keep], shorter, ads, fade)[held]
                place = ranks(scores_of(model, asked), values[offsets[1:][held] - 1])
                found.append((float((place <= 10).mean()), model, fade))
        value, model, fade = max(found, key=lambda run: run[0])
        model.fit(matrix(values, offsets, ads), show_progress=False)
        asked = matrix(given["asked_values"], given["asked_offsets"], ads, fade)
        np.save(folder / f"implicit_{name}.answer.npy", ranks(scores_of(model, asked), given["target"]))
        print(f"implicit {name}: validation recall@10 {value:.4f} with {type(model).__name__}, fade {fade}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
