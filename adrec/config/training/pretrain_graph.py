"""Config of `adrec pretrain-graph`: vectors of entities from the links between them."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from adrec.config.base import ConfigPath, OnDevice, Seeded


class PretrainGraphConfig(OnDevice, Seeded):
    """Learn a vector of each entity that foretells its links. Reads the links of `prepared`; writes the folder `output`."""

    prepared: ConfigPath
    """Folder made by `adrec preprocess` of a source with links (docs/data/graph.md)."""
    output: ConfigPath
    """Folder to write: `entities.parquet`, `entities.npy`, `relations.parquet`, `metrics.json`."""
    model: Literal["transe", "rotate", "complex"] = "rotate"
    """transe: a relation is a step from head to tail. rotate: a turn of each complex number. complex: a product with each."""
    width: Annotated[int, Field(ge=2, le=4_096)] = 64
    """Numbers of a vector, even: complex ones have two each."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Passes over the links."""
    batch_links: Annotated[int, Field(ge=1, le=10_000_000)] = 256
    """Links a batch."""
    learning_rate: Annotated[float, Field(gt=0, le=1_000)] = 0.01
    """Of Adam."""
    loss: Literal["auto", "self_adversarial", "cross_entropy"] = "auto"
    """self_adversarial: negatives weigh by how true the model takes them for (Sun et al. 2019). cross_entropy: which entity is
    it, of those drawn. auto: cross_entropy for complex, else self_adversarial."""
    negatives: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Entities drawn a batch for each end of its links; with cross_entropy all are asked where there are no more than that."""
    margin: Annotated[float, Field(gt=0, le=1_000)] = 9.0
    """Distance that self_adversarial keeps true from false links apart by."""
    n3: Annotated[float, Field(ge=0, le=1_000)] = 0.0
    """Weight of the cubes of the numbers, which keeps complex from learning by heart."""
    ads: bool = True
    """Learn from the links of ads too: what is linked to the same ads is near."""
    test_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """Links held out to measure by, none of which is the only one of an entity or a relation; 0: nothing is measured."""

    @field_validator("width")
    @classmethod
    def _is_even(cls, width: int) -> int:
        if width % 2:
            raise ValueError("must be even: two numbers make a complex one")
        return width
