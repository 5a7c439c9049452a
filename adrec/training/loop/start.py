"""Training that goes on from earlier bundles: their weights where the new network has a place for them, the encoder, the
calibration, and which rows are learned already. The optimiser starts afresh.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from adrec.config.training.finetune import FinetuneConfig, TextEncoderSettings
from adrec.models.blend.calibration import Calibration
from adrec.models.text.text_encoder import TextEncoder
from adrec.training.carrying import Carried, Described, carry_over
from adrec.training.click_data import ClickData


@dataclass(frozen=True)
class Source:
    """The network of an earlier bundle."""

    name: str
    """as the config has it"""
    networks: Sequence[Mapping[str, Tensor]]
    """its weights; of an ensemble, those of each member"""
    described: Described


@dataclass(frozen=True)
class Start:
    """What earlier bundles give to a new training: each its network, the first of them all else."""

    fingerprint: str
    """of the bundles"""
    sources: Sequence[Source]
    calibrations: Mapping[str, Calibration]
    """of the network's own logits, by task; empty where trees stand beside it"""
    encoder: TextEncoder | None
    text: TextEncoderSettings
    """how it read text"""
    learned_until: int | None
    """the last moment (microseconds since 1970) of the rows that they learned; None where none says"""

    def source(self, member: int) -> Source:
        """Whose network run `member` of several starts from: they take turns, so that each market has a run."""
        return self.sources[member % len(self.sources)]

    def carry(self, network: nn.Module, config: FinetuneConfig, data: ClickData, *, member: int, text_space: str) -> Carried:
        """Copy what both know into a freshly made `network`, of run `member` of several."""
        described = Described(
            config.model, data.dimensions, data.features, data.tasks, data.own_ads.ids, data.own_users.ids, text_space
        )
        source, turn = self.source(member), member // len(self.sources)
        return carry_over(network, described, source.networks[turn % len(source.networks)], source.described)

    def encoder_for(self, config: FinetuneConfig, encoder: TextEncoder) -> TextEncoder | None:
        """The first bundle's own text encoder, where it is what the config's `encoder` would come to; None where it is another.

        A frozen one is where its weights are the same: the bundle's has the word part that its network knows. One that is
        trained goes on where it was, if both name the same reference and read text alike.
        """
        own, text = self.encoder, config.text
        if own is None or (own.lexical is not None) != bool(text.lexical or encoder.lexical is not None):
            return None
        if text.train == "frozen" and self.text.train == "frozen":
            return own if own.without_lexical().fingerprint == encoder.without_lexical().fingerprint else None
        is_same = text.reference == self.text.reference and encoder.pooling == own.pooling
        is_same = is_same and encoder.reading == own.reading
        return own if is_same and encoder.max_tokens == own.max_tokens and text.train != "frozen" else None
