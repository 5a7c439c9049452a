"""The text encoder of a click model as its config asks for it: opened, read, and copied where it is trained along."""

import pyarrow.compute as pc
import torch

from adrec.config.training.finetune import FinetuneConfig
from adrec.data.device import encodes_bf16, resolve_device
from adrec.data.prepared import Prepared
from adrec.models.text.encoder_training import trainable_copy
from adrec.models.text.lexical import fit_lexical
from adrec.models.text.text_encoder import TextEncoder, load_text_encoder
from adrec.models.text.text_vectors import TextReader
from adrec.training.loop.start import Start


def open_text_encoder(config: FinetuneConfig, prepared: Prepared, start: Start | None = None) -> TextEncoder | None:
    """The encoder that the config names, its lexical part fitted on the ads that training knows; None without text.

    A training that goes on from a bundle takes the bundle's own wherever it is the same encoder.
    """
    text = config.text
    if text.reference is None:
        return None
    encoder = load_text_encoder(
        text.reference,
        pooling=text.pooling,
        max_tokens=text.max_tokens,
        prompts=None if text.prompts is None else {str(role): prompt for role, prompt in text.prompts.items()},
        dimensions=text.dimensions,
    )
    if start is not None and (own := start.encoder_for(config, encoder)) is not None:
        return own
    if text.lexical and encoder.lexical is None:
        texts = prepared.ads()["text"].combine_chunks()
        known = texts.filter(pc.invert(prepared.later(texts)))
        words = fit_lexical(encoder, known.to_numpy(zero_copy_only=False).tolist(), text.lexical)
        encoder = encoder.with_lexical(torch.from_numpy(words))
    return encoder


def text_reader(config: FinetuneConfig, encoder: TextEncoder | None) -> TextReader:
    """Vectors of a frozen encoder, from the cache where they are known; tokens where the encoder is trained."""
    text, device = config.text, resolve_device(config.device)
    return TextReader(
        encoder,
        as_tokens=text.train != "frozen",
        device=device,
        batch_tokens=text.batch_tokens,
        cache=text.cache,
        bf16=encodes_bf16(config.training.precision, device),
    )


def trained_encoder(config: FinetuneConfig, encoder: TextEncoder | None) -> TextEncoder | None:
    """A copy of the encoder for one run to train; None where it is frozen."""
    text = config.text
    if encoder is None or text.train == "frozen":
        return None
    return trainable_copy(encoder, text.train, last_layers=text.last_layers, lora_rank=text.lora_rank)
