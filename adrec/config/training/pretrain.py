"""Config of `adrec pretrain-mlm`: what to train, on which objectives, in which batches."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from adrec.config.base import Config, ConfigPath, EncoderReference, OnDevice, Paged, Seeded
from adrec.config.cluster import TrainsOnCluster
from adrec.config.training.loop import TrainingConfig
from adrec.config.training.privacy import PretrainPrivacy
from adrec.specs import Pooling


class ScratchModel(Config):
    """A BERT with random weights over the tokenizer that preprocess trained."""

    kind: Literal["scratch"] = "scratch"
    size: Literal["tiny", "mini", "small", "base"] = "tiny"
    """Layers and width: tiny 2 x 128, mini 4 x 256, small 4 x 512, base 12 x 768."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of hidden states."""


class ContinuedModel(Config):
    """Any Hugging Face encoder, with its own tokenizer; a masked-language-model head is added where it has none."""

    kind: Literal["continue"]
    reference: EncoderReference
    """Local folder, `package:module/path` or hub name."""


class Word2VecModel(Config):
    """Word vectors trained on the corpus: skip-gram with negative sampling (Mikolov et al., 2013)."""

    kind: Literal["word2vec"]
    dimension: int = Field(100, ge=2, le=65_536)
    """Width of the vectors."""
    window: int = Field(5, ge=1, le=1_000_000)
    """Words to each side that count as context."""
    min_count: int = Field(2, ge=1)
    """Rarer words get no vector."""
    epochs: int = Field(10, ge=1, le=100_000)
    """Passes over the corpus."""


class VectorFileModel(Config):
    """Word vectors from a file: GloVe, fastText or word2vec text, word2vec `.bin`, or a folder of `.npy` and Parquet index."""

    kind: Literal["vectors"]
    file: EncoderReference
    """The file or folder; `package:module/path` inside an installed package."""
    corpus_words_only: bool = True
    """Keep only words of the corpus. False keeps all: larger, and ready for words to come."""


class AutoencoderModel(Config):
    """A compressor of ads: text vector and features to a short code, for small and fast retrieval indexes."""

    kind: Literal["autoencoder"]
    reference: EncoderReference
    """Text encoder that reads the ads."""
    width: int = Field(32, ge=2, le=65_536)
    """Numbers in a code."""


Model = Annotated[
    ScratchModel | ContinuedModel | Word2VecModel | VectorFileModel | AutoencoderModel, Field(discriminator="kind")
]


class MlmObjective(Config):
    """Masked language modelling."""

    weight: float = Field(1.0, gt=0)
    """Factor of its loss in the sum."""
    rate: float = Field(0.15, gt=0, lt=1)
    """Share of tokens to predict."""
    whole_words: bool = True
    """Mask all tokens of a word together; Chinese words by jieba."""


class NspObjective(Config):
    """Sentence pairs: do these two belong together? Half of the pairs are random, and never a true pair by accident."""

    weight: float = Field(1.0, gt=0)
    """Factor of its loss in the sum."""
    pairs: Literal["parts", "clicks"] = "parts"
    """`parts`: the title of an ad and the rest of its text. `clicks`: two ads that one user clicked one after the other."""


class DaeObjective(Config):
    """TSDAE: rebuild a text from the one vector of its damaged copy (Wang et al., 2021)."""

    weight: float = Field(1.0, gt=0)
    """Factor of its loss in the sum."""


CLICKED = frozenset({"clicks", "queries", "interests"})
"""Kinds of pairs that clicks of the training rows make. A click model trained on the same rows finds its labels in them."""


class ContrastiveObjective(Config):
    """Pull two views of a text together, push the other texts of the batch away."""

    weight: float = Field(1.0, gt=0)
    """Factor of its loss in the sum."""
    positives: list[Literal["dropout", "parts", "categories", "clicks", "queries", "interests"]] = Field(
        ["dropout"], min_length=1
    )
    """`dropout`: the same text twice (SimCSE, Gao et al., 2021); stands alone. `parts`: an ad's title and the rest of its text.
    `categories`: an ad and its category's name. The others pair a clicked ad of the training rows with an ad clicked before
    it, with the query, or with the user's interests: a click model of the same rows then finds its labels in the vectors."""
    window: int = Field(1, ge=1, le=1_000_000)
    """For clicks: how many clicks apart two ads of one user may lie to be a pair."""
    temperature: float = Field(0.05, gt=0)
    """Divides the cosines."""
    batch_texts: int = Field(64, ge=2, le=1_000_000)
    """Pairs a batch; each has all others as negatives."""

    @model_validator(mode="after")
    def _dropout_alone(self) -> "ContrastiveObjective":
        if "dropout" in self.positives and len(self.positives) > 1:
            raise ValueError("`dropout` pairs each text with itself and does not mix with other positives")
        return self


class Objectives(Config):
    """One or several; an epoch is a pass over the first of those present, in this order."""

    mlm: MlmObjective | None = MlmObjective()
    """Masked language modelling; null leaves it out."""
    nsp: NspObjective | None = None
    """Do two texts belong together?"""
    dae: DaeObjective | None = None
    """Denoising autoencoder."""
    contrastive: ContrastiveObjective | None = None
    """Contrastive learning of text vectors."""

    @model_validator(mode="after")
    def _one_at_least(self) -> "Objectives":
        if not any((self.mlm, self.nsp, self.dae, self.contrastive)):
            raise ValueError("at least one objective is needed")
        return self

    @property
    def read_clicks(self) -> bool:
        """Whether clicks of the training rows make any of the pairs."""
        paired = self.contrastive is not None and bool(CLICKED & set(self.contrastive.positives))
        return paired or (self.nsp is not None and self.nsp.pairs == "clicks")


class Batches(Config):
    """How texts become batches."""

    max_tokens: int = Field(64, ge=4, le=1_000_000)
    """Longer texts are cut; also the number of positions of a model from scratch."""
    batch_tokens: int = Field(2048, ge=32, le=100_000_000)
    """Tokens a batch, padding included."""
    packing: bool = True
    """Several texts in a row, attention inside each, hardly any padding. False gives each text a row of its own."""

    streamed: bool = False
    """Keep no tokens on disk: count them in one pass, and make them anew whenever a batch needs them. For corpora whose tokens
    the disk cannot hold; the batches are the same."""
    chunk_texts: int = Field(131_072, ge=1, le=1_000_000_000)
    """Texts that are packed and shuffled together. When streaming, so many are in memory at once."""

    @property
    def pack_tokens(self) -> int:
        """Tokens a row holds when packing: room for several texts, and attention over rows that a processor still likes."""
        return max(128, self.max_tokens)

    @model_validator(mode="after")
    def _fits(self) -> "Batches":
        if self.packing and self.pack_tokens > self.batch_tokens:
            raise ValueError(f"`batch_tokens` must be {self.pack_tokens} or more, which is what a packed row holds")
        return self


class MixtureSettings(Config):
    """Texts of other markets, learned beside those of `prepared`, whose tokenizer a model from scratch has."""

    also: Annotated[list[ConfigPath], Field(min_length=1)]
    """Their prepared folders."""
    temperature: float = Field(0.5, ge=0, le=1)
    """How often a text of a market of n texts is learned: n to the power of this less 1, the largest market's once an epoch. 1
    takes texts as they come, 0 gives all markets as many."""


class PretrainConfig(OnDevice, Seeded, Paged, TrainsOnCluster):
    """Teach an encoder the language of the user's own texts. Reads `prepared`; writes the encoder folder `output`."""

    prepared: ConfigPath
    """Folder made by `adrec preprocess`."""
    output: ConfigPath
    """Encoder folder to write: Hugging Face files, adrec.json, metrics.json, report.html."""
    model: Model = ScratchModel()
    """What is trained."""
    pooling: Pooling | None = None
    """How token vectors become one vector; null keeps what the continued encoder records, else mean."""
    objectives: Objectives = Objectives()
    """What it is trained to do."""
    batches: Batches = Batches()
    """How texts become batches."""
    training: TrainingConfig = TrainingConfig()
    """Optimiser, schedule, checkpoints."""
    mixture: MixtureSettings | None = None
    """Further markets; null leaves them out."""
    privacy: PretrainPrivacy | None = None
    """Bound what the encoder tells of one user's queries and interests. An epoch is then a pass over the users; the ads' texts
    are public."""

    @model_validator(mode="after")
    def _streams(self) -> "PretrainConfig":
        contrastive = self.objectives.contrastive
        if self.privacy is not None:
            self._counted(self.privacy)
        if self.mixture is not None and not isinstance(self.model, ScratchModel | ContinuedModel):
            raise ValueError("mixture: is of language models; model.kind may be scratch or continue")
        if self.mixture is not None and self.objectives.read_clicks:
            raise ValueError("mixture: pairs made by clicks are of one market's users. Take positives parts or categories")
        if self.batches.streamed and (self.objectives.dae or (contrastive and "dropout" in contrastive.positives)):
            raise ValueError("batches.streamed: dae and contrastive dropout hold the whole corpus in memory; leave them out")
        return self

    def _counted(self, privacy: PretrainPrivacy) -> None:
        """Raises ValueError for what privacy cannot count."""
        others = [name for name in ("nsp", "dae", "contrastive") if getattr(self.objectives, name) is not None]
        if self.objectives.mlm is None or others:
            raise ValueError(f"privacy: only `mlm` is counted by user; leave out {', '.join(others) or 'its null'}")
        if not isinstance(self.model, ScratchModel | ContinuedModel):
            raise ValueError("privacy: model.kind may be scratch or continue")
        if isinstance(self.model, ScratchModel) and "tokenizer" not in privacy.public:
            raise ValueError(
                "privacy: the prepared folder's tokenizer has counted what users wrote. Continue a public encoder; or if "
                "anyone may know its words, say so: privacy.public=[tokenizer]"
            )
        if self.mixture is not None:
            raise ValueError("privacy: the users of one prepared folder are counted; leave out `mixture`")
        if self.batches.streamed or self.training.processes != 1 or self.training.accumulate != 1:
            raise ValueError(
                "privacy: a step's users are drawn in one process: leave out streamed, devices, nodes and accumulate"
            )
