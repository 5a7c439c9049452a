"""DIN, DCNv2 and FinalMLP of FuxiCTR (its `LongCTR` zoo) on the rows of `leaderboard.py`; run in an environment with fuxictr.

FuxiCTR's own models, embeddings, training loop, early stopping and learning-rate plateau; only the batches are made here, in
memory (its loader looks every click up in pandas). Settings are those of its published MovieLens and Amazon configs: Adam
5e-4 to 1e-3, embedding 16 to 32, MLP [128, 64] for this many rows; of three settings of dropout and regulariser the better on
validation is kept, for each model.
"""

import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.torch_utils import seed_everything
from model_zoo.LongCTR.DCNv2.DCNv2 import DCNv2
from model_zoo.LongCTR.DIN.DIN import DIN
from model_zoo.LongCTR.FinalMLP.FinalMLP import FinalMLP

WIDTH, BATCH = 16, 512
COMMON = {
    "gpu": -1, "optimizer": "adam", "loss": "binary_crossentropy", "task": "binary_classification", "metrics": ["AUC"],
    "verbose": 0, "monitor": "AUC", "monitor_mode": "max", "save_best_only": True, "early_stop_patience": 2,
    "learning_rate": 1e-3, "embedding_dim": WIDTH,
}  # fmt: skip
MODELS = {
    "din": (DIN, {"dnn_hidden_units": [128, 64], "attention_hidden_units": [64]}, "net_dropout"),
    "dcnv2": (DCNv2, {"parallel_dnn_hidden_units": [128, 64], "num_cross_layers": 3}, "net_dropout"),
    "finalmlp": (FinalMLP, {"mlp1_hidden_units": [128, 64], "mlp2_hidden_units": [64], "use_fs": False}, "mlp1_dropout"),
}
STRENGTHS = (
    {"dropout": 0.0, "regulariser": 1e-6},
    {"dropout": 0.1, "regulariser": 1e-5},
    {"dropout": 0.4, "regulariser": 1e-3},
)


class Batches:
    """What FuxiCTR's loaders give: (row features, item features of history and target, mask)."""

    def __init__(self, rows: dict[str, np.ndarray], category: np.ndarray, *, shuffle: bool) -> None:
        self.rows, self.category, self.shuffle = rows, torch.from_numpy(category), shuffle
        self.num_samples, self.num_blocks = len(rows["click"]), 1
        self.num_batches = -(-self.num_samples // BATCH)
        self.batch_size = BATCH

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]]:
        order = np.random.permutation(self.num_samples) if self.shuffle else np.arange(self.num_samples)
        for start in range(0, self.num_samples, BATCH):
            at = order[start : start + BATCH]
            history = torch.from_numpy(self.rows["history"][at])
            items = torch.cat([history, torch.from_numpy(self.rows["ad"][at])[:, None]], dim=1).flatten()
            numeric = torch.from_numpy(self.rows["numeric"][at])
            batch = {"user": torch.from_numpy(self.rows["user"][at])}
            batch |= {f"number_{number}": numeric[:, number] for number in range(numeric.shape[1])}
            batch["click"] = torch.from_numpy(self.rows["click"][at])
            yield batch, {"ad": items, "category": self.category[items]}, (history > 0).float()


def feature_map(rows: dict[str, np.ndarray], category: np.ndarray, folder: Path) -> FeatureMap:
    features = FeatureMap("rows", str(folder))
    categorical = {"type": "categorical", "padding_idx": 0}
    features.features = OrderedDict(
        user={**categorical, "source": "user", "vocab_size": int(rows["user"].max()) + 1},
        **{f"number_{number}": {"type": "numeric", "source": "row"} for number in range(rows["numeric"].shape[1])},
        ad={**categorical, "source": "item", "vocab_size": len(category)},
        category={**categorical, "source": "item", "vocab_size": int(category.max()) + 1},
    )
    features.labels, features.default_emb_dim = ["click"], WIDTH
    features.num_fields = features.get_num_fields()
    return features


def main(folder: Path, seeds: int) -> None:
    category = np.load(folder / "ads.npz")["category"]
    rows = {split: dict(np.load(folder / f"{split}.npz")) for split in ("train", "valid", "test")}
    train, valid, test = (Batches(part, category, shuffle=split == "train") for split, part in rows.items())
    for name, (model_class, settings, dropout) in MODELS.items():
        found = []
        for strength in STRENGTHS:
            answers, measured = [], []
            for seed in range(seeds):
                seed_everything(seed)
                with tempfile.TemporaryDirectory() as scratch:
                    features = feature_map(rows["train"], category, Path(scratch))
                    regulariser = {"embedding_regularizer": strength["regulariser"]}
                    model = model_class(
                        features,
                        model_id=name,
                        model_root=scratch,
                        **COMMON,
                        **settings,
                        **regulariser,
                        **{dropout: strength["dropout"]},
                    )
                    Path(model.model_dir).mkdir(parents=True, exist_ok=True)
                    model.fit(train, epochs=30, validation_data=valid)
                    measured.append(model.evaluate(valid)["AUC"])
                    answers.append(model.predict(test))
            found.append((float(np.mean(measured)), np.mean(answers, axis=0), strength))
        best = max(found, key=lambda run: run[0])
        print(f"FuxiCTR {name}: validation AUC {best[0]:.4f} with {best[2]}", flush=True)
        np.save(folder / f"fuxictr_{name}.answer.npy", best[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
