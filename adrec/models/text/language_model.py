"""A masked language model behind one interface: states of packed texts, logits at chosen places.

New BERT shapes from scratch (Turc et al., "Well-Read Students Learn Better", 2019), or any Hugging Face encoder, with its head
or a new one. Attention is kept inside each text of a pack by a 4-D mask; position ids restart in each.

# B packs, L tokens a pack, M places, D width, V vocabulary
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from adrec.errors import ConfigError, DataError
from adrec.models.text.hugging_face import (
    check_tokenizer,
    first_position,
    load_masked_lm,
    position_limit,
    quiet_transformers,
    resolve_reference,
)

SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "base": (12, 768)}
"""Name -> (layers, width); heads are 64 wide, the inner layer 4 times the width."""


class LanguageModel(nn.Module):
    """Wraps a Hugging Face `...ForMaskedLM`. `config` is its config, `backbone` the encoder below the head.

    `new_weights` counts parameters that no checkpoint gave (a head added to a plain encoder).
    """

    def __init__(self, model: nn.Module, *, new_weights: int = 0) -> None:
        super().__init__()
        self.model = model
        self.new_weights = new_weights

    @property
    def config(self) -> Any:
        """The Hugging Face config."""
        return cast(Any, self.model).config

    @property
    def backbone(self) -> nn.Module:
        """The encoder without its head."""
        return cast(nn.Module, cast(Any, self.model).base_model)

    @property
    def dimension(self) -> int:
        """Width D of the states."""
        return int(self.config.hidden_size)

    def forward(self, tokens: Tensor, texts: Tensor, positions: Tensor) -> Tensor:
        """States (B, L, D) of packed texts. `texts` (B, L) numbers each token's text, -1 is padding; `positions` from 0."""
        output = self.backbone(
            input_ids=tokens,
            attention_mask=self._mask(texts),
            position_ids=positions + first_position(self.config),
        )
        return cast(Tensor, output.last_hidden_state)

    def hidden_states(self, tokens: Tensor, texts: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """States after the embedding and after every layer, each (B, L, D)."""
        output = self.backbone(
            input_ids=tokens,
            attention_mask=self._mask(texts),
            position_ids=positions + first_position(self.config),
            output_hidden_states=True,
        )
        return cast(tuple[Tensor, ...], output.hidden_states)

    def logits(self, states: Tensor) -> Tensor:
        """Vocabulary logits (M, V) of states (M, D): the head runs only where a token must be predicted."""
        model = cast(Any, self.model)
        if hasattr(model, "cls"):  # BERT
            return cast(Tensor, model.cls(states))
        if hasattr(model, "lm_head"):  # RoBERTa and its kin
            return cast(Tensor, model.lm_head(states))
        if hasattr(model, "vocab_projector"):  # DistilBERT
            return cast(Tensor, model.vocab_projector(model.vocab_layer_norm(model.activation(model.vocab_transform(states)))))
        if hasattr(model, "generator_lm_head"):  # ELECTRA
            return cast(Tensor, model.generator_lm_head(model.generator_predictions(states)))
        return cast(Tensor, model.decoder(model.head(states)))  # ModernBERT

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Write a folder that AutoModel and AutoModelForMaskedLM open."""
        with quiet_transformers():
            cast(Any, self.model).save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    def _mask(self, texts: Tensor) -> Any:
        """(B, 1, L, L), True where two tokens are of one text. Padding sees padding, so no row of it is empty."""
        same = (texts.unsqueeze(2) == texts.unsqueeze(1)).unsqueeze(1)
        if not hasattr(self.config, "local_attention"):
            return same
        place = torch.arange(texts.shape[1], device=texts.device)
        near = (place.unsqueeze(0) - place.unsqueeze(1)).abs() <= self.config.local_attention // 2
        return {"full_attention": same, "sliding_attention": same & near}


def new_language_model(size: str, tokenizer: Any, *, max_tokens: int, dropout: float = 0.1) -> LanguageModel:
    """A BERT of a named size with random weights over `tokenizer`. Draw from torch's generator: seed it first."""
    from transformers import BertConfig, BertForMaskedLM

    if tokenizer.mask_token_id is None:
        raise DataError("the tokenizer has no mask token; train one with 'adrec preprocess'.")
    layers, width = SIZES[size]
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=max_tokens,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,  # the fused attention kernels of CPUs have no dropout
        pad_token_id=tokenizer.pad_token_id,
    )
    return LanguageModel(BertForMaskedLM(config))


def open_language_model(reference: str, tokenizer: Any, *, max_tokens: int) -> LanguageModel:
    """Continue from an encoder; a head is added where the checkpoint has none.

    Raises DataError where it is no encoder or does not fit `tokenizer`, ConfigError where texts would outgrow its positions.
    """
    where = resolve_reference(reference)
    model, new_weights = load_masked_lm(where)
    check_tokenizer(where, tokenizer, model.config)
    if tokenizer.mask_token_id is None:
        raise DataError(f"{where}: its tokenizer has no mask token, so there is nothing to mask with.")
    limit = position_limit(model.config)
    if limit and max_tokens > limit:
        raise ConfigError(f"max_tokens is {max_tokens}, but {reference} has positions for {limit} tokens. Lower max_tokens.")
    return LanguageModel(model, new_weights=new_weights)
