"""Config of `adrec distill`: which teacher, how small a student, and what it must imitate."""

from pydantic import Field, model_validator

from adrec.config.base import Config, ConfigPath, EncoderReference, OnDevice, Seeded, TrustsKeys
from adrec.config.cluster import TrainsOnCluster
from adrec.config.training.loop import TrainingConfig
from adrec.config.training.pretrain import Batches


class DistilTerms(Config):
    """Weights of the terms of the loss; 0 leaves a term out. With `vector` alone the teacher reads each text once."""

    soft: float | None = Field(None, ge=0)
    """Soft targets of masked tokens. Null: 5 where the teacher has a trained masked-language-model head, else 0."""
    mlm: float | None = Field(None, ge=0)
    """Masked language modelling. Null: 2 where the teacher has such a head, else 0."""
    cosine: float = Field(1.0, ge=0)
    """1 - cosine of the last states, token by token."""
    vector: float = Field(4.0, ge=0)
    """Squared distance of the text vectors, relative to the teacher's squared length."""


class ClickTerms(Config):
    """The click task itself: the bundle's network learns to read the student's vectors. Batches and losses are the bundle's."""

    soft: float = Field(0.5, ge=0, le=1)
    """Share of the teacher's soft targets in the loss; the rest are the clicks."""
    epochs: int = Field(1, ge=1, le=100_000)
    """Passes over the training rows."""
    learning_rate: float = Field(5e-4, gt=0, le=1_000)
    """Peak learning rate of AdamW for all but the text encoder, which keeps the bundle's own."""


class ListTerms(Config):
    """A re-ranker's order of lists that nobody was shown, which the bundle's network learns beside the clicks of its log."""

    requests: int = Field(500, ge=10, le=100_000_000)
    """Training requests, at whose moments lists are made: of ads that had been shown by then, with what was known by then."""
    ads: int = Field(20, ge=2, le=1_000)
    """Length of each list: of what retrieval finds, the ads of the bundle's highest scores. The re-ranker reads them all."""
    soft: float = Field(0.5, ge=0, le=1)
    """Share of the lists in the loss; the rest are the clicks."""
    batch_lists: int = Field(16, ge=1, le=100_000)
    """Lists a step, beside a batch of the bundle's own."""
    epochs: int = Field(1, ge=1, le=100_000)
    """Passes over the training rows."""
    learning_rate: float = Field(5e-4, gt=0, le=1_000)
    """Peak learning rate of AdamW."""


class StudentTraining(TrainingConfig):
    """How a student is trained."""

    epochs: int = Field(3, ge=1, le=100_000)
    """Passes over the training data."""
    learning_rate: float = Field(3e-4, gt=0, le=1_000)
    """Peak learning rate of AdamW."""


class DistillConfig(OnDevice, Seeded, TrustsKeys, TrainsOnCluster):
    """Train a smaller encoder to stand in for a larger one, or a bundle's network to order lists as a re-ranker does. Reads
    `prepared` and the teacher; writes the folder `output`."""

    prepared: ConfigPath
    """Folder made by `adrec preprocess`: its corpus is what the two are compared on."""
    output: ConfigPath
    """Encoder folder to write; a bundle where the teacher is one."""
    teacher: EncoderReference | None = None
    """Encoder to imitate: local folder, `package:module/path` or hub name. With `lists`: a folder of `adrec train-reranker`."""
    bundle: ConfigPath | None = None
    """Bundle whose text encoder is replaced by a student; all else of it stays, calibration included."""
    layers: int | None = Field(None, ge=1, le=1_000)
    """Layers of the student, copied from the teacher, spread evenly; null is half."""
    terms: DistilTerms = DistilTerms()
    """What the student imitates."""
    batches: Batches = Batches()
    """How texts become batches."""
    training: StudentTraining = StudentTraining()
    """Optimiser, schedule, checkpoints."""
    click: ClickTerms | None = None
    """With a bundle: go on with the click task, once the student's vectors are near the teacher's. Where the bundle's text
    encoder is not frozen, the student is trained with it."""

    lists: ListTerms | None = None
    """With a re-ranker as `teacher` and a `bundle`: its network learns the re-ranker's order; its text encoder stays."""

    @model_validator(mode="after")
    def _one_teacher(self) -> "DistillConfig":
        if self.lists is not None:
            if self.teacher is None or self.bundle is None or self.click is not None:
                raise ValueError("`lists` needs a `bundle` and, as `teacher`, a re-ranker's folder, and goes without `click`")
            return self
        if (self.teacher is None) == (self.bundle is None):
            raise ValueError("exactly one of `teacher` and `bundle` is needed, or both and `lists`")
        if self.click is not None and self.bundle is None:
            raise ValueError("`click` needs a `bundle`")
        return self
