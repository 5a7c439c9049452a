"""What finetune learns from: the prepared folder's rows as arrays, their texts as vectors, and the bundle it goes on from."""

from dataclasses import dataclass

from adrec.config.training.finetune import FinetuneConfig, for_clicks_alone
from adrec.data.examples import Examples
from adrec.data.prepared import Prepared, open_prepared
from adrec.inference.starting import open_start
from adrec.models.baselines.base import Columns, Inputs
from adrec.models.text.text_encoder import TextEncoder
from adrec.models.text.text_vectors import TextReader
from adrec.terminal import Terminal
from adrec.training.click_data import ClickData, load_click_data
from adrec.training.click_encoder import open_text_encoder, text_reader
from adrec.training.loop.start import Start

FEW_ROWS = 10_000
"""Rows to learn from that fit scales and vocabularies worse than another market does."""
_SLOT_FEATURES = ("position", "counter_position_rate")


@dataclass(frozen=True)
class Material:
    """All that is read before anything is learned."""

    config: FinetuneConfig
    """of logs of clicks alone: with what suits them"""
    prepared: Prepared
    encoder: TextEncoder | None
    reader: TextReader
    start: Start | None
    data: ClickData
    """training and validation rows"""
    terminal: Terminal

    @property
    def text_space(self) -> str:
        """Fingerprint of the encoder whose vectors the network reads; empty without text."""
        return self.encoder.fingerprint if self.encoder is not None else ""

    def all_rows(self) -> ClickData:
        """Training and validation rows together, to be learned."""
        splits, until = self.config.learned_splits, _learned_until(self.start)
        return load_click_data(self.config, self.prepared, self.reader, self.terminal, splits=splits, learned_until=until)

    def inputs(self, data: ClickData, rows: Examples) -> Inputs:
        """Rows of `data` as the baselines read them."""
        columns = Columns.of(data.features)
        return Inputs(rows, data.ads, data.users, columns, data.matcher.names(columns.ad_categorical))

    def learned_inputs(self, data: ClickData) -> Inputs:
        """The rows that `data` learns from; of a split that is streamed, a sample."""
        config = self.config
        return self.inputs(data, data.train if data.train is not None else data.sample(config.baselines.max_rows, config.seed))


def read_material(config: FinetuneConfig, terminal: Terminal) -> Material:
    """Open everything, encode the texts, and warn of what makes figures look better than they are."""
    prepared = open_prepared(config.prepared)
    if prepared.is_implicit:
        config = for_clicks_alone(config, uniform=not prepared.drawn_by)
    for finding in prepared.manifest.get("findings", []):
        terminal.warn(finding["message"])
    start = open_start(config.sources, config.trusted_keys) if config.sources else None
    if start is not None and _carries_scales(config, prepared):
        prepared = Prepared(prepared.path, read_as=start.sources[0].described.features)
    encoder = open_text_encoder(config, prepared, start)
    if encoder is not None and encoder.clicks_of == prepared.fingerprint:
        terminal.warn(
            f"{config.text.reference} learned from the clicks of these training rows: likeness looks better there than it"
            " is, and what reads it trusts it too much. Pretrain with `positives: [parts, categories]`, or compare the two."
        )
    _warn_of_positions(config, prepared, terminal)
    reader, until = text_reader(config, encoder), _learned_until(start)
    data = load_click_data(config, prepared, reader, terminal, learned_until=until)
    if start is not None and until is not None and data.newest is not None and int(data.valid.shown_at.min()) <= until:
        terminal.warn(
            f"{start.sources[0].name}: has learned validation rows, if it is of this log: what they choose and measure flatters"
            " it. Go on from a bundle that ends before them, or let later files come first."
        )
    return Material(config, prepared, encoder, reader, start, data, terminal)


def _carries_scales(config: FinetuneConfig, prepared: Prepared) -> bool:
    if config.carried_scales is not None:
        return config.carried_scales
    return sum(prepared.rows(split) for split in config.learned_splits) < FEW_ROWS


def _learned_until(start: Start | None) -> int | None:
    return start.learned_until if start is not None else None


def _warn_of_positions(config: FinetuneConfig, prepared: Prepared, terminal: Terminal) -> None:
    """A slot that is a feature is known in the log alone: whoever ranks promises the first place the clicks of the average."""
    features = prepared.features()["impressions"]
    named = [name for name in (*features.categorical_names, *features.numeric_names) if name in _SLOT_FEATURES]
    if named:
        terminal.warn(
            f"{prepared.path}: '{named[0]}' is a feature, but no slot is known when ads are ranked. Leave it out of the "
            "preprocess config and set model.position_bias to true: what slots do is then learned apart."
        )
