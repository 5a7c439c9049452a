"""DIN of Torch-RecHub on the rows of `leaderboard.py`; run in an environment with torch-rechub.

Its own model, features and trainer; its DIN takes categories alone, so that numbers come as twentieths of training (Adam,
early stopping by validation AUC). Two weights of decay are tried, the better on validation is kept.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.ranking import DIN
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import TorchDataset

WIDTH, BATCH, BUCKETS = 16, 512, 20
DECAYS = (1e-5, 1e-3)


def inputs(rows: dict[str, np.ndarray], category: np.ndarray, edges: list[np.ndarray]) -> dict[str, np.ndarray]:
    made = {"user": rows["user"], "ad": rows["ad"], "category": category[rows["ad"]]}
    made |= {"history_ad": rows["history"], "history_category": category[rows["history"]]}
    return made | {f"number_{at}": np.searchsorted(edge, rows["numeric"][:, at]) for at, edge in enumerate(edges)}


def model_of(numbers: int, users: int, category: np.ndarray) -> DIN:
    ads, categories = len(category), int(category.max()) + 1
    ad = SparseFeature("ad", vocab_size=ads, embed_dim=WIDTH, padding_idx=0)
    kind = SparseFeature("category", vocab_size=categories, embed_dim=WIDTH, padding_idx=0)
    history = [
        SequenceFeature("history_ad", vocab_size=ads, embed_dim=WIDTH, pooling="concat", shared_with="ad", padding_idx=0),
        SequenceFeature("history_category", vocab_size=categories, embed_dim=WIDTH, pooling="concat", shared_with="category",
                        padding_idx=0),
    ]  # fmt: skip
    rest = [SparseFeature("user", vocab_size=users, embed_dim=WIDTH)]
    rest += [SparseFeature(f"number_{number}", vocab_size=BUCKETS + 1, embed_dim=WIDTH) for number in range(numbers)]
    return DIN(
        features=rest, history_features=history, target_features=[ad, kind],
        mlp_params={"dims": [128, 64], "dropout": 0.2}, attention_mlp_params={"dims": [64, 32]},
    )  # fmt: skip


def main(folder: Path, seeds: int) -> None:
    category = np.load(folder / "ads.npz")["category"]
    rows = {split: dict(np.load(folder / f"{split}.npz")) for split in ("train", "valid", "test")}
    edges = [np.unique(np.quantile(column, np.linspace(0, 1, BUCKETS)[1:-1])) for column in rows["train"]["numeric"].T]
    sets = {split: TorchDataset(inputs(part, category, edges), part["click"]) for split, part in rows.items()}
    train = DataLoader(sets["train"], batch_size=BATCH, shuffle=True)
    valid, test = (DataLoader(sets[split], batch_size=BATCH) for split in ("valid", "test"))
    found = []
    for decay in DECAYS:
        answers, measured = [], []
        for seed in range(seeds):
            torch.manual_seed(seed)
            np.random.seed(seed)
            model = model_of(rows["train"]["numeric"].shape[1], int(rows["train"]["user"].max()) + 1, category)
            with tempfile.TemporaryDirectory() as scratch:
                trainer = CTRTrainer(
                    model, optimizer_params={"lr": 1e-3, "weight_decay": decay}, n_epoch=30, earlystop_patience=2, device="cpu",
                    model_path=scratch,
                )  # fmt: skip
                trainer.fit(train, valid)
                measured.append(roc_auc_score(rows["valid"]["click"], trainer.predict(trainer.model, valid)))
                answers.append(np.asarray(trainer.predict(trainer.model, test)))
        found.append((float(np.mean(measured)), np.mean(answers, axis=0), decay))
    best = max(found, key=lambda run: run[0])
    print(f"Torch-RecHub DIN: validation AUC {best[0]:.4f} with weight decay {best[2]}", flush=True)
    np.save(folder / "torch_rechub_din.answer.npy", best[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
