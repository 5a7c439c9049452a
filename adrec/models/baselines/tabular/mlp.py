"""The classic click network: 128-64-1 with ReLU and a sigmoid, Adam, binary cross-entropy, 10 epochs of batches of 32."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import Tensor, nn

from adrec.models.baselines.base import Floats, Inputs, load_state, save_state
from adrec.models.baselines.tabular.design import Scaler, design
from adrec.models.baselines.tabular.rates import Rates

_MAX_VALUES = 64
_SCORING_ROWS = 65_536


class ClassicMlp:
    """Standard-scaled features and one-hot categories into a 128-64-1 network; of categories of more than 64 values, the click
    rates of the values, for a network learns rare ones by heart.

    `max_rows` bounds the training rows (drawn at random above it), since batches of 32 are slow by design.
    """

    name: ClassVar[str] = "mlp"
    is_probability: ClassVar[bool] = True

    def __init__(
        self,
        *,
        epochs: int = 10,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        max_rows: int = 200_000,
        scaler: Scaler | None = None,
        network: nn.Sequential | None = None,
        rates: Rates | None = None,
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_rows = max_rows
        self.scaler = scaler
        self.network = network
        self.rates = rates or Rates()

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """Both labels."""
        return "" if 0 < np.nanmean(inputs.clicks) < 1 else "both clicked and unclicked training rows"

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Scale, then train."""
        known = inputs.labelled()
        table = design(known)
        self.rates, own = Rates.fit(table, known, beyond=_MAX_VALUES, seed=seed)
        self.scaler = Scaler.fit(table.with_columns(own), leave_out=self.rates.names, weights=known.weights)
        rows = self.scaler.transform(table.with_columns(own))
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(rows.shape[0], generator=generator)[: self.max_rows]
        features = _dense(rows[chosen.numpy()])
        labels = torch.from_numpy(known.clicks[chosen.numpy()])
        weights = None
        if known.weights is not None:  # of mean 1, so that a step does not depend on the unit of counts
            weights = torch.from_numpy((known.weights[chosen.numpy()] / known.weights.mean()).astype(np.float32))
        self.network = build_network(features.shape[1], generator)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate, fused=True)
        loss_of = nn.functional.binary_cross_entropy_with_logits
        for _ in range(self.epochs):
            order = torch.randperm(len(features), generator=generator)
            for batch in torch.split(order, self.batch_size):
                optimizer.zero_grad(set_to_none=True)
                weight = None if weights is None else weights[batch]
                loss: Tensor = loss_of(self.network(features[batch])[:, 0], labels[batch], weight)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def score(self, inputs: Inputs) -> Floats:
        """(N,) probabilities."""
        if self.scaler is None or self.network is None:
            raise ValueError("the classic MLP is not fitted")
        table = design(inputs)
        rows = self.scaler.transform(table.with_columns(self.rates.columns(table)))
        result = np.zeros(rows.shape[0], np.float32)
        with torch.inference_mode():
            for start in range(0, rows.shape[0], _SCORING_ROWS):
                part = slice(start, start + _SCORING_ROWS)
                result[part] = torch.sigmoid(self.network(_dense(rows[part]))[:, 0]).numpy()
        return result

    def save(self, folder: Path) -> None:
        """Scaling and weights, and below `rates` those of many values."""
        if self.scaler is None or self.network is None:
            raise ValueError("the classic MLP is not fitted")
        save_state(folder, {"scaler": self.scaler.values()})
        save_file(self.network.state_dict(), folder / "network.safetensors")
        (folder / "rates").mkdir()
        self.rates.save(folder / "rates")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        scaler = Scaler.from_values(load_state(folder)[0]["scaler"])
        state = load_file(folder / "network.safetensors")
        network = build_network(state["0.weight"].shape[1], torch.Generator().manual_seed(0))
        network.load_state_dict(state)
        return cls(scaler=scaler, network=network, rates=Rates.load(folder / "rates"))


def build_network(width: int, generator: torch.Generator) -> nn.Sequential:
    """width → 128 → 64 → 1 logit, weights drawn from `generator` (Kaiming uniform, zero bias)."""
    network = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))
    for module in network:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(module.bias)
    return network


def _dense(rows: sparse.csr_matrix) -> Tensor:
    return torch.from_numpy(np.asarray(rows.todense(), dtype=np.float32))
