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
from adrec.data.batches.collate import LIST_PADDING, Batch, Entities, Texts
from adrec.models.net.interaction import mean_interest
from adrec.models.net.matches import Matches
from adrec.models.net.modalities import Crosses, LateFusion, Modalities, dropped
from adrec.models.net.neighbours import Neighbours
from adrec.models.net.position_bias import PositionBias
from adrec.models.net.search import CategorySearch, HashedSearch
from adrec.models.net.semantic_ids import SemanticIds
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


class Fields(nn.Module):
    """Numeric, categorical and list features → one vector: embeddings beside the numbers."""

    def __init__(
        self, *, numeric: int, cardinalities: tuple[int, ...], list_cardinalities: tuple[int, ...], width: int
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(size, width) for size in cardinalities])
        self.list_tables = nn.ModuleList([nn.Embedding(size, width) for size in list_cardinalities])
        for table in [*self.tables, *self.list_tables]:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.05)
        self.out_width = numeric + width * (len(cardinalities) + len(list_cardinalities))

    def forward(self, numeric: Tensor, categorical: Tensor, lists: tuple[Tensor, ...]) -> Tensor:
        """(N, Fn), (N, Fc), lists of (N, L) → (N, out_width)."""
        columns = [numeric]
        columns += [table(categorical[:, index]) for index, table in enumerate(self.tables)]
        for table, codes in zip(self.list_tables, lists, strict=True):
            real = (codes != LIST_PADDING).to(numeric.dtype)  # (N, L)
            vectors = table(codes.clamp(min=0))
            columns.append(torch.einsum("nl,nld->nd", real / real.sum(-1, keepdim=True).clamp(min=1), vectors))
        return torch.cat(columns, -1)


class Factors(nn.Module):
    """Features → the sum of a vector for each value of a category, those of a list averaged, and one for each number.

    Vectors that other models made (of widths `vectors`) count as so many numbers; a missing one is all zeros and adds nothing.
    """

    def __init__(
        self,
        *,
        numeric: int,
        cardinalities: tuple[int, ...],
        list_cardinalities: tuple[int, ...],
        vectors: tuple[int, ...],
        width: int,
    ) -> None:
        super().__init__()
        self.fields = None
        if cardinalities or list_cardinalities:
            self.fields = Fields(numeric=0, cardinalities=cardinalities, list_cardinalities=list_cardinalities, width=width)
        self.numeric = nn.Linear(numeric, width, bias=False) if numeric else None
        self.vectors = nn.ModuleList([nn.Linear(own, width, bias=False) for own in vectors])
        self.start = nn.Parameter(torch.zeros(width))

    def forward(
        self, numeric: Tensor, categorical: Tensor, lists: tuple[Tensor, ...], vectors: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """(N, Fn), (N, Fc), lists of (N, L), vectors (N, V) → (N, width)."""
        total = self.start.expand(len(numeric), -1)
        if self.fields is not None:
            codes = self.fields(numeric[:, :0], categorical, lists)
            total = total + codes.view(len(codes), -1, len(self.start)).sum(1)
        if self.numeric is not None:
            total = total + self.numeric(numeric)
        for project, own in zip(self.vectors, vectors, strict=True):
            total = total + project(own)
        return total


class ListWeights(nn.Module):
    """What each value of an ad's lists adds to the logits by itself, a weight each, from 0; unknown values add nothing.

    The wide part of Wide & Deep (Cheng et al. 2016): words that are listed as a feature speak one by one, "half price" for
    itself, where a text's vector holds what the text is about.
    """

    def __init__(self, *, cardinalities: tuple[int, ...], tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        # Flat, since vectors do not decay: a word seen a hundred times would shrink at every step that does not show it.
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(size * tasks)) for size in cardinalities])

    def forward(self, lists: tuple[Tensor, ...]) -> Tensor:
        """Lists of codes (A, L) → (A, tasks)."""
        added = []
        for weights, codes in zip(self.weights, lists, strict=True):
            table = weights.view(-1, self.tasks)
            added.append((table[codes.clamp(min=0)] * (codes > 0)[..., None]).sum(1))
        return torch.stack(added).sum(0)

    def squares(self, lists: tuple[Tensor, ...]) -> Tensor:
        """Lists of codes (A, L) → (A,), the sum of the squared weights of their values, over all tasks.

        Its mean over rows is a ridge that weighs a value by how often it is there: what nearly every ad says is left to the
        intercept, and rare values are not shrunk.
        """
        added = []
        for weights, codes in zip(self.weights, lists, strict=True):
            table = weights.view(-1, self.tasks).square().sum(-1)
            added.append((table[codes.clamp(min=0)] * (codes > 0)).sum(1))
        return torch.stack(added).sum(0)


class HashedVectors(nn.Module):
    """A vector for each code 1, 2, ... `rows` squared: a row of one table times 1 + a row of another (quotient and remainder,
    Shi et al. 2020, with the second as a deviation, so that decay leads to what codes of one row share). 0 has its own.
    """

    def __init__(self, rows: int, width: int, *, sparse: bool = False) -> None:
        super().__init__()
        self.rows = rows
        self.first, self.second = (nn.Embedding(rows + 1, width, sparse=sparse) for _ in range(2))
        nn.init.normal_(self.first.weight, std=0.02)
        nn.init.normal_(self.second.weight, std=0.5)

    def forward(self, codes: Tensor) -> Tensor:
        """(N,) int64 → (N, width)."""
        place = (codes - 1).clamp(min=0)
        known = (codes > 0).to(codes.dtype)
        vectors: Tensor = self.first(known * (place // self.rows + 1)) * (1 + self.second(known * (place % self.rows + 1)))
        return vectors


class EntityEncoder(nn.Module):
    """An ad or a user: its text vector, its features and (optionally) a vector of its own → (N, D).

    The own vector is dropped with probability `identity_dropout` in training, in favour of the vector of whatever is unseen:
    so that one is trained, and an ad or user never seen before meets a model that knows the case (Volkovs et al. 2017).
    With `by_rows` gradients of own vectors are sparse: the rows that a batch names.
    """

    def __init__(
        self,
        *,
        text_width: int,
        fields: Fields,
        width: int,
        identities: int,
        identity_dropout: float,
        hashed: int = 0,
        by_rows: bool = False,
        dropout: float,
        modalities: Modalities | None = None,
        semantic: SemanticIds | None = None,
    ):
        super().__init__()
        self.fields, self.modalities, self.semantic = fields, modalities, semantic
        self.text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width)) if text_width else None
        self.identity: nn.Module | None = None
        if hashed:
            self.identity = HashedVectors(hashed, width, sparse=by_rows)
        elif identities:
            self.identity = nn.Embedding(identities + 1, width, sparse=by_rows)
            nn.init.normal_(self.identity.weight, std=0.02)
        self.identity_dropout = identity_dropout
        self.features = nn.Linear(fields.out_width, width) if fields.out_width else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(width, width))
        self.start = nn.Parameter(torch.zeros(width))

    def forward(self, entities: Entities, text: Tensor | None) -> Tensor:
        """N entities with text vectors (N, E) → (N, D)."""
        total = self.start.expand(len(entities.identity), -1)
        token = None
        if self.text is not None:
            assert text is not None
            token = self.dropout(self.text(text))
        if self.semantic is not None:
            assert text is not None
            total = total + self.semantic(text)
        if self.modalities is not None:
            total = total + self.modalities(entities.vectors, token)
        elif token is not None:
            total = total + token
        if self.features is not None:
            total = total + self.features(self.fields(entities.numeric, entities.categorical, entities.lists))
        if self.identity is not None:
            codes = entities.identity
            if self.training:
                codes = codes.masked_fill(torch.rand(codes.shape, device=codes.device) < self.identity_dropout, 0)
            total = total + self.identity(codes)
        vectors: Tensor = total + self.out(total)
        return vectors


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


def first_of_chain(task: int, presupposes: Sequence[int | None]) -> int:
    """The task at the root of what `task` presupposes."""
    while (parent := presupposes[task]) is not None:
        task = parent
    return task


def chained(logits: Tensor, presupposes: tuple[int | None, ...]) -> Tensor:
    """A task that presupposes others gets log-odds of the product of all their probabilities (ESMM, Ma et al. 2018, eq. 1).

    p(click and conversion) = p(click) p(conversion | click), so conversion is learned from every impression, not only from
    clicked ones. Computed in log space: log p = logsigmoid(a) + logsigmoid(b) + .... (B, K) → (B, K).
    """
    if not any(parent is not None for parent in presupposes):
        return logits
    columns = []
    for task, parent in enumerate(presupposes):
        if parent is None:
            columns.append(logits[:, task])
            continue
        log_p = nn.functional.logsigmoid(logits[:, task])
        while parent is not None:  # and what the parent presupposes in turn
            log_p = log_p + nn.functional.logsigmoid(logits[:, parent])
            parent = presupposes[parent]
        # log(p / (1 - p)) with 1 - p = -expm1(log p), exact where p is near 1 or 0.
        columns.append(log_p - torch.log((-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)))
    return torch.stack(columns, -1)
