"""One row of the click model, taken apart: every input that an explanation may change, as tensors of its own.

In a batch an ad that is both candidate and past click is one vector. Here the candidate and every click have a place of their
own, so that each can be changed alone. `Row.logits` runs N variants of the row at once, each as its own context.

# N variants, H clicks, S skipped ads, D text width, T tokens, E width of a token embedding
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.data.batches.collate import Batch, Entities, Texts
from adrec.models.net.ensemble import ClickNetwork
from adrec.models.text.text_encoder import TextEncoder


class Continuous(NamedTuple):
    """What a straight path can lead to. A first axis of N variants (1 for the row itself) stands before each shape."""

    text: Tensor
    """(T, E) token embeddings of the candidate, those of the lexical part behind, or (D,) its vector without tokens"""
    clicks: Tensor
    """(H, D) text vectors of the clicks"""
    skipped: Tensor
    """(S, D)"""
    interests: Tensor
    """(P, D), or (D,) where a trained encoder reads them as one text"""
    query: Tensor
    """(D,)"""
    numeric: Tensor
    """(Fn,) of the impression"""
    ad_numeric: Tensor
    """(1 + H + S, Fa): candidate, clicks, skipped"""
    user_numeric: Tensor
    """(Fu,)"""


class Discrete(NamedTuple):
    """What can only be known or not; 0 is the unknown value."""

    categorical: Tensor
    """(N, Fc) of the impression"""
    ad_categorical: Tensor
    """(N, 1 + H + S, Fa)"""
    user_categorical: Tensor
    """(N, Fu)"""
    ad_identity: Tensor
    """(N, 1 + H + S)"""
    user_identity: Tensor
    """(N,)"""
    history_length: Tensor
    """(N,)"""
    lists: Tensor
    """(N, L) 1 where an item of the impression's list features is known, else 0; one list after the other"""
    ad_lists: Tensor
    """(N, 1 + H + S, La)"""
    user_lists: Tensor
    """(N, Lu)"""


@dataclass(frozen=True)
class Row:
    """A row of a model, ready to be varied."""

    model: ClickNetwork
    encoder: TextEncoder | None
    batch: Batch
    """The row alone, as the collator made it."""
    input_ids: Tensor | None
    attention_mask: Tensor | None
    """(1, T) of the candidate's tokens; None where the text is a vector."""
    places: Tensor
    """(1 + H + S,) where candidate, clicks and skipped ads lie among the batch's ads."""
    has_text: bool
    has_interests: bool
    has_query: bool

    @property
    def clicks(self) -> int:
        """H, clicks without padding."""
        return self.batch.history.shape[1]

    def items(self, kind: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """List and code of every item of the impression's `lists`, the candidate's `ad_lists` or `user_lists`, (L,) each."""
        lists = {"lists": self.batch.lists, "ad_lists": self.batch.ads.lists, "user_lists": self.batch.users.lists}[kind]
        codes = item_codes(lists, self.places[:1] if kind == "ad_lists" else self.places.new_zeros(1))[0]
        return np.repeat(np.arange(len(lists)), [part.shape[1] for part in lists]), codes.cpu().numpy()

    def first_items(self, kind: str) -> NDArray[np.int64]:
        """For every item the place where its value stands first in its list, -1 for unknown values and padding, (L,)."""
        lists, codes = self.items(kind)
        _, first, which = np.unique(np.stack([lists, codes]), axis=1, return_index=True, return_inverse=True)
        return np.where(codes > 0, first[which], -1)

    def logits(self, continuous: Continuous, discrete: Discrete) -> Tensor:
        """(N,) main logit of each variant."""
        made: Tensor = self.model(self._batch(continuous, discrete)).logits[:, 0]
        return made

    def text_vector(self, text: Tensor) -> Tensor:
        """Token embeddings (N, T, E) → text vectors (N, D); vectors pass."""
        if self.attention_mask is None or self.input_ids is None or self.encoder is None:
            return text
        mask = self.attention_mask.expand(len(text), -1)
        tables = token_tables(self.encoder)
        width = text.shape[-1] - sum(_width(table) for table in tables[1:])
        parts = [text[..., :width], text[..., width:]][: len(tables)]
        # The tables' own outputs are replaced, so that any backbone can be run from embeddings.
        with ExitStack() as hooks:
            for table, part in zip(tables, parts, strict=True):
                hooks.callback(table.register_forward_hook(lambda module, inputs, output, part=part: part).remove)
            vectors: Tensor = self.encoder(self.input_ids.expand(len(text), -1), mask)
        return vectors

    def _batch(self, continuous: Continuous, discrete: Discrete) -> Batch:
        count, places = len(discrete.history_length), len(self.places)
        device = self.batch.ad.device
        rows = torch.arange(count, device=device)
        ads = rows[:, None] * places + torch.arange(places, device=device)  # (N, 1 + H + S)
        first_skipped = 1 + self.clicks
        vectors = None
        if self.has_text:
            candidate = self.text_vector(continuous.text)[:, None]  # (N, 1, D)
            vectors = torch.cat([candidate, continuous.clicks, continuous.skipped], 1).flatten(0, 1)
        source = self.batch
        repeated = self.places.repeat(count)
        return source._replace(
            ads=Entities(
                texts=Texts(vectors),
                numeric=continuous.ad_numeric.flatten(0, 1),
                categorical=discrete.ad_categorical.flatten(0, 1),
                lists=_present(tuple(codes[repeated] for codes in source.ads.lists), discrete.ad_lists.flatten(0, 1)),
                identity=discrete.ad_identity.flatten(),
            ),
            users=Entities(
                texts=Texts(continuous.interests if self.has_interests else None),
                numeric=continuous.user_numeric,
                categorical=discrete.user_categorical,
                lists=_present(source.users.lists, discrete.user_lists),
                identity=discrete.user_identity,
            ),
            history=ads[:, 1:first_skipped],
            history_mask=source.history_mask.expand(count, -1),
            history_hours=source.history_hours.expand(count, -1),
            history_length=discrete.history_length,
            skipped=ads[:, first_skipped:],
            skipped_mask=source.skipped_mask.expand(count, -1),
            queries=Texts(continuous.query if self.has_query else None),
            context=rows,
            ad=ads[:, 0],
            query=rows,
            numeric=continuous.numeric,
            categorical=discrete.categorical,
            lists=_present(source.lists, discrete.lists),
            position=source.position.expand(count),
            group=rows,
        )


def take_apart(model: ClickNetwork, encoder: TextEncoder | None, batch: Batch, tokens: Any) -> tuple[Row, Continuous, Discrete]:
    """A batch of one row, and the `(input_ids, attention_mask)` of its candidate (None without tokens) → its inputs.

    Text vectors of a batch with tokens (a trained encoder) are made here.
    """
    places = torch.cat([batch.ad[:1], batch.history[0], batch.skipped[0]])
    with torch.no_grad():
        ad_text = model.text_vectors(batch.ads.texts)
        interests, queries = model.text_vectors(batch.users.texts), model.text_vectors(batch.queries)
        nothing = torch.zeros(0, device=places.device)
        text = nothing[None]
        if ad_text is not None:
            text = ad_text[batch.ad]
            if tokens is not None and encoder is not None:
                text = token_embeddings(encoder, tokens[0])
    clicks = batch.history.shape[1]
    row = Row(
        model=model,
        encoder=encoder,
        batch=batch,
        input_ids=tokens[0] if tokens is not None else None,
        attention_mask=tokens[1] if tokens is not None else None,
        places=places,
        has_text=ad_text is not None,
        has_interests=interests is not None,
        has_query=queries is not None,
    )
    continuous = Continuous(
        text=text,
        clicks=ad_text[places[None, 1 : 1 + clicks]] if ad_text is not None else nothing[None],
        skipped=ad_text[places[None, 1 + clicks :]] if ad_text is not None else nothing[None],
        interests=interests if interests is not None else nothing[None],
        query=queries[batch.query] if queries is not None else nothing[None],
        numeric=batch.numeric,
        ad_numeric=batch.ads.numeric[places][None],
        user_numeric=batch.users.numeric,
    )
    discrete = Discrete(
        categorical=batch.categorical,
        ad_categorical=batch.ads.categorical[places][None],
        user_categorical=batch.users.categorical,
        ad_identity=batch.ads.identity[places][None],
        user_identity=batch.users.identity,
        history_length=batch.history_length,
        lists=torch.ones(1, *item_codes(batch.lists, places.new_zeros(1)).shape[1:], device=places.device),
        ad_lists=torch.ones(1, *item_codes(batch.ads.lists, places).shape, device=places.device),
        user_lists=torch.ones(1, *item_codes(batch.users.lists, places.new_zeros(1)).shape[1:], device=places.device),
    )
    return row, continuous, discrete


def _present(lists: tuple[Tensor, ...], there: Tensor) -> tuple[Tensor, ...]:
    """Lists (N or 1, L) each, the unknown value for the items where `there` (N, L of all lists) is 0."""
    pieces = torch.split(there, [codes.shape[1] for codes in lists], dim=1)
    return tuple(torch.where(piece > 0, codes, codes.clamp(max=0)) for piece, codes in zip(pieces, lists, strict=True))


def item_codes(lists: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """Codes of the items of all lists (A, L) of some rows (N,), one list after the other, (N, L of all)."""
    return torch.cat([codes[rows] for codes in lists], 1) if lists else rows.new_zeros(len(rows), 0)


def token_embeddings(encoder: TextEncoder, input_ids: Tensor) -> Tensor:
    """Token ids (N, T) → (N, T, E): what the encoder knows of its tokens alone."""
    return torch.cat([table(input_ids) for table in token_tables(encoder)], -1)


def token_tables(encoder: TextEncoder) -> list[nn.Module]:
    """The embedding tables that read the tokens: the backbone's, and that of a lexical part."""
    backbone: Any = encoder.backbone
    table: nn.Module = backbone.table if encoder.kind == "word_vectors" else backbone.get_input_embeddings()
    return [table] if encoder.lexical is None else [table, encoder.lexical]


def _width(table: nn.Module) -> int:
    weight: Any = table.weight
    return int(weight.shape[1])
