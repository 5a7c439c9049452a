"""Config of `adrec train-reranker`: which language model reads history and ad together, from how many requests it learns."""

from typing import Annotated, Literal

from pydantic import Field

from adrec.config.base import ConfigPath, EncoderReference, OnDevice, OpensBundle, Seeded
from adrec.config.cluster import TrainsOnCluster
from adrec.config.training.loop import TrainingConfig


class RerankerTraining(TrainingConfig):
    """How a re-ranker is trained: little, since a language model soon forgets what it knew."""

    epochs: int = Field(1, ge=1, le=100_000)
    """Passes over the training data."""
    learning_rate: float = Field(5e-5, gt=0, le=1_000)
    """Peak learning rate of AdamW."""


class TrainRerankerConfig(OpensBundle, OnDevice, Seeded, TrainsOnCluster):
    """Train a model that reads a user's history and an ad together, to re-rank the first of a bundle's lists."""

    prepared: ConfigPath
    """Folder made by `adrec preprocess`, the bundle's."""
    bundle: ConfigPath
    """Bundle whose lists are re-ranked: its scores and the new ones are joined on validation rows."""
    reference: EncoderReference
    """An encoder (made a cross-encoder) or a decoder (which answers yes or no): folder, `package:module/path`, hub name."""
    output: ConfigPath
    """Folder to write."""
    train: Literal["full", "last", "lora"] = "full"
    """full: all weights. last: the upper `last_layers`. lora: low-rank updates, which suit decoders."""
    last_layers: Annotated[int, Field(ge=1, le=1_000)] = 2
    """How many upper layers `last` trains."""
    lora_rank: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Rank of the LoRA updates."""
    soft_tokens: bool = False
    """Beside the words it reads the bundle's vectors of the user and of the ad, each through a small trained map as one token
    (CoLLM). It then goes with this bundle only: `rank` and `serve` refuse it with another."""
    soft_learning_rate: Annotated[float, Field(gt=0, le=1_000)] = 1e-3
    """Peak learning rate of those maps, which start at random where the language model does not."""
    clicks: Annotated[int, Field(ge=0, le=1_000)] = 10
    """Newest clicks of the history that are read, in words."""
    max_tokens: Annotated[int, Field(ge=8, le=1_000_000)] | None = 128
    """Longest pair; what is beyond is cut from the longer text, the user's or the ad's. None takes the encoder's own limit."""
    requests: Annotated[int, Field(ge=1, le=100_000_000)] = 2_000
    """Training requests that hold a click and a miss, drawn by `seed`; all where there are fewer."""
    negatives: Annotated[int, Field(ge=1, le=1_000)] = 4
    """Unclicked ads of its request beside each click."""
    judged_requests: Annotated[int, Field(ge=20, le=100_000_000)] = 300
    """Validation requests on which scores are joined and the gain is measured."""
    top: Annotated[int, Field(ge=2, le=1_000)] = 20
    """Ads of each validation request that are re-ranked: as many as `rerank.top` in `rank` should be."""
    batch_rows: Annotated[int, Field(ge=2, le=100_000)] = 40
    """Pairs a batch, about: a click and its negatives stay together."""
    training: RerankerTraining = RerankerTraining()
    """Optimiser, schedule, checkpoints. Nothing is chosen by evaluation: the last weights stand."""
