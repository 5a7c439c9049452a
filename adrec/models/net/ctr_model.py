"""The click model, composed: text → ad vectors → user vectors → interaction → a logit a task.

B rows, C contexts, A ads, Q queries, H history, D width, K tasks. Ads, users and queries are encoded once a batch, whatever
the number of rows that name them. Every part is given in from outside; `adrec.training.build` puts them together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from adrec.data.batches.blocks import blocks_of_one
from adrec.data.batches.collate import Batch, Entities, Texts
from adrec.models.net.entity_encoder import EntityEncoder
from adrec.models.net.fields import Fields, ListWeights
from adrec.models.net.interaction import mean_interest
from adrec.models.net.matches import Matches
from adrec.models.net.modalities import Crosses, LateFusion, dropped
from adrec.models.net.multitask import chained, first_of_chain
from adrec.models.net.neighbours import Neighbours
from adrec.models.net.position_bias import PositionBias
from adrec.models.net.search import CategorySearch, HashedSearch
from adrec.models.net.sequence import newest
from adrec.models.net.user_encoder import Read, UserEncoder


class Outputs(NamedTuple):
    """What a forward pass gives."""

    logits: Tensor
    """(B, K) one raw output a task; the first is the main task"""
    users: Tensor
    """(C, D) user vectors"""
    ads: Tensor
    """(A, D) ad vectors"""
    position_bias: Tensor | None
    """(B,) what the slot added to the main logit in training; None when it was off"""
    interest: Tensor | None
    """(C, number of categories) logits of the next category clicked, from the user alone; None where not learned"""
    list_squares: Tensor | None = None
    """(B,) in training, the squared weights that the values of the candidate's lists have of their own, summed"""
    clicks: tuple["Clicks", ...] = ()
    """what each causal part of the user encoder read"""


class Clicks(NamedTuple):
    """The newest L clicks of each context, and the state of a causal part after each."""

    states: Tensor
    """(C, L, D); places of padding mean nothing"""
    ads: Tensor
    """(C, L) int64, into the ads of the batch"""
    real: Tensor
    """(C, L) bool"""


class CTRModel(nn.Module):
    """See the file's head. `presupposes[k]` is the task that must happen before task k (ESMM, `chained`), or None.

    `wide` is a linear map from the features straight to the logits (Wide & Deep, Cheng et al. 2016): on small data the
    counters and text matches speak through it before the deep part has learned anything. `wide_lists` does so for the values
    of the ads' lists.
    """

    def __init__(
        self,
        *,
        text_encoder: nn.Module | None,
        ad_encoder: EntityEncoder,
        user_profile: EntityEncoder,
        user_encoder: UserEncoder,
        fields: Fields,
        matches: Matches,
        interaction: nn.Module,
        sharing: nn.Module,
        sharing_width: int,
        tasks: int,
        query: nn.Module | None = None,
        position_bias: PositionBias | None = None,
        interest: nn.Module | None = None,
        presupposes: tuple[int | None, ...] | None = None,
        wide: nn.Module | None = None,
        wide_lists: ListWeights | None = None,
        late: LateFusion | None = None,
        crosses: Crosses | None = None,
        modality_dropout: float = 0.0,
        neighbours: Neighbours | None = None,
        paths: int | None = None,
        search: CategorySearch | HashedSearch | None = None,
    ) -> None:
        """`paths`: which of the lists of ads holds their links, where neighbours are read. `search`: finds the clicks that the
        user encoder's `target` attends to; its other parts then read the newest `search.top`.
        """
        super().__init__()
        self.text_encoder = text_encoder
        self.ad_encoder = ad_encoder
        self.user_profile = user_profile
        self.user_encoder = user_encoder
        self.fields = fields
        self.matches = matches
        self.late, self.crosses, self.modality_dropout = late, crosses, modality_dropout
        self.neighbours, self.paths = neighbours, paths
        self.search = search
        self.interaction = interaction
        self.sharing = sharing
        self.heads = nn.ModuleList([nn.Linear(sharing_width, 1) for _ in range(tasks)])
        self.query = query
        self.position_bias = position_bias
        self.interest = interest
        self.wide, self.wide_lists = wide, wide_lists
        self.presupposes = presupposes or (None,) * tasks
        self.placed = first_of_chain(0, self.presupposes)
        """The task that slots act on: the click, where the main task is what follows one."""

    def forward(self, batch: Batch) -> Outputs:
        """One logit a row and task."""
        if self.training and self.modality_dropout:
            share = self.modality_dropout
            batch = batch._replace(ads=dropped(batch.ads, share), users=dropped(batch.users, share))
        ad_text = self.text_vectors(batch.ads.texts)
        ads = self.ad_encoder(batch.ads, ad_text)  # (A, D)
        interests = self._interests(batch)
        recent = self._recent(batch)
        read = self._read(recent, ads, interests)
        users = read.users  # (C, D)
        candidates = ads[batch.ad]  # (B, D)
        queries = self.text_vectors(batch.queries)
        matches = self.matches(batch, ad_text, interests, queries)
        attended = self._attended(batch, ads, ad_text, candidates)
        extra = self._extra(batch, ads, read, queries, matches, candidates, attended)
        joint = self.interaction(users[batch.context], candidates, extra)
        towers = self.sharing(joint)
        # In float32 whatever the products are in: sums and log-odds of bf16 keep two digits.
        logits = torch.cat([head(tower) for head, tower in zip(self.heads, towers, strict=True)], -1).float()  # (B, K)
        if self.wide is not None:
            logits = logits + self.wide(extra)
        if self.wide_lists is not None:
            logits = logits + self.wide_lists(batch.ads.lists)[batch.ad]
        if self.late is not None:
            logits = logits + self.late(
                batch.ads.vectors,
                [self.matches.of_modality(matches, number) for number in range(len(batch.ads.vectors))],
                batch.history,
                batch.history_mask,
                batch.context,
                batch.ad,
            )
        if self.crosses is not None:
            logits = logits + self.crosses(batch)
        bias = None
        if self.position_bias is not None and self.training:
            bias = self.position_bias(batch.position, batch.categorical)
            at = self.placed
            logits = torch.cat([logits[:, :at], logits[:, at : at + 1] + bias[:, None], logits[:, at + 1 :]], -1)
        squares = None
        if self.wide_lists is not None and self.training:
            squares = self.wide_lists.squares(batch.ads.lists)[batch.ad]
        interest = self.interest(users) if self.interest is not None else None
        clicks = tuple(Clicks(part.states, recent.history.gather(1, part.places), part.real) for part in read.causal)
        return Outputs(chained(logits, self.presupposes), users, ads, bias, interest, squares, clicks)

    def start_at(self, outputs: Sequence[float]) -> None:
        """Set the intercept of each task: what an untrained model answers on average."""
        for head, output in zip(self.heads, outputs, strict=True):
            nn.init.constant_(cast(nn.Linear, head).bias, output)

    def slot_effects(self) -> Tensor | None:
        """(placements, slots + 1) what each slot adds to the click logit; None where it was not learned."""
        return None if self.position_bias is None else self.position_bias.table()

    def text_vectors(self, texts: Texts) -> Tensor | None:
        """(N, E): given with the batch by a frozen encoder, or made here by the trained one; None where there is no text."""
        if texts.input_ids is None:
            return texts.vectors
        assert self.text_encoder is not None
        vectors: Tensor = self.text_encoder(texts.input_ids, texts.attention_mask)
        return vectors

    def encode_ads(self, ads: Entities) -> Tensor:
        """(A, D) ad vectors."""
        vectors: Tensor = self.ad_encoder(ads, self.text_vectors(ads.texts))
        return vectors

    def encode_users(self, batch: Batch) -> Tensor:
        """(C, D) user vectors: the candidate-free part, whose dot product with ad vectors serves retrieval."""
        return self._read(self._recent(batch), self.encode_ads(batch.ads), self._interests(batch)).users

    def _interests(self, batch: Batch) -> Tensor | None:
        """(C, P, D); an encoder that is trained reads all interests as one text."""
        interests = self.text_vectors(batch.users.texts)
        return interests[:, None] if interests is not None and interests.ndim == 2 else interests

    def _recent(self, batch: Batch) -> Batch:
        """With the part of the histories that is read whole."""
        if self.search is None:
            return batch
        places, real = newest(batch.history_mask, self.search.top)
        history, hours = batch.history.gather(1, places), batch.history_hours.gather(1, places)
        return batch._replace(history=history, history_mask=real, history_hours=hours)

    def _attended(self, batch: Batch, ads: Tensor, text: Tensor | None, candidates: Tensor) -> Tensor | None:
        """(B, D) the history as each candidate sees it; None where none looks."""
        history, mask, context, blocks = batch.history, batch.history_mask, batch.context, batch.blocks
        if self.search is not None:
            places, mask = self.search(batch, text)
            context = torch.arange(len(places), device=places.device)
            history, blocks = history[batch.context[:, None], places], blocks_of_one(context)
        attended: Tensor | None = self.user_encoder.for_candidates(ads[history], mask, candidates, context, blocks)
        return attended

    def _read(self, batch: Batch, ads: Tensor, interests: Tensor | None) -> Read:
        profile = self.user_profile(batch.users, mean_interest(interests) if interests is not None else None)
        read: Read = self.user_encoder(
            ads[batch.history],
            batch.history_mask,
            batch.history_hours,
            profile,
            ads[batch.skipped],
            batch.skipped_mask,
        )
        return read

    def _extra(
        self,
        batch: Batch,
        ads: Tensor,
        read: Read,
        queries: Tensor | None,
        matches: Tensor,
        candidates: Tensor,
        attended: Tensor | None,
    ) -> Tensor:
        """Everything beside the two vectors: features, matches, links, the attended history, how near the candidate is to what
        the causal parts expect, the query. (B, E)."""
        columns = [
            self.fields(batch.numeric, batch.categorical, batch.lists),
            torch.log1p(batch.history_length)[batch.context][:, None] / 5,
            self.matches.read(matches),
        ]
        if self.neighbours is not None:
            assert self.paths is not None
            columns.append(self.neighbours(batch.ads.lists[self.paths], read.users, candidates, batch.context, batch.ad))
        if attended is not None:
            columns += [attended, (attended * candidates).sum(-1, keepdim=True)]
        for expected in read.last:
            columns.append((expected[batch.context] * candidates).sum(-1, keepdim=True) / math.sqrt(candidates.shape[-1]))
        if self.query is not None:
            asked = self.query(queries)[batch.query]  # (B, D)
            columns += [asked, (asked * candidates).sum(-1, keepdim=True)]
        return torch.cat(columns, -1)
