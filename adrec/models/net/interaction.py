"""User, ad and features → one representation a row, on which the tasks build; and the parameter-free match of their texts.

Shapes: B rows, C contexts, A ads, H history, D width, E width of the extra input, K width of the result (`out_width`).
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from adrec.data.batches.blocks import Blocks

Interaction = Literal["dot", "mlp", "dcn", "fm", "deepfm"]
INTERACTIONS: tuple[Interaction, ...] = ("dot", "mlp", "dcn", "fm", "deepfm")


class Dot(nn.Module):
    """u . a / sqrt(D): nothing else may speak, so scores are exactly what nearest-neighbour retrieval orders by."""

    out_width = 1

    def forward(self, user: Tensor, ad: Tensor, extra: Tensor) -> Tensor:
        """(B, D), (B, D), (B, E) → (B, 1)."""
        return (user * ad).sum(-1, keepdim=True) / math.sqrt(user.shape[-1])


class Concatenated(nn.Module):
    """[u, a, u * a, |u - a|, u . a / sqrt(D), extra]; the tasks' own layers are the MLP over it."""

    def __init__(self, *, width: int, extra: int) -> None:
        super().__init__()
        self.out_width = 4 * width + 1 + extra

    def forward(self, user: Tensor, ad: Tensor, extra: Tensor) -> Tensor:
        """(B, D), (B, D), (B, E) → (B, 4 D + 1 + E)."""
        product = user * ad
        dot = product.sum(-1, keepdim=True) / math.sqrt(user.shape[-1])
        return torch.cat([user, ad, product, (user - ad).abs(), dot, extra], -1)


class CrossNetwork(nn.Module):
    """x_{l+1} = x_0 * (U V' x_l + b) + x_l: explicit crosses of every order up to `layers` + 1 (DCN-v2, Wang et al. 2021).

    W = U V' has the low rank of the paper's section 3.5. The result is the crossed vector beside the input itself.
    """

    def __init__(self, *, width: int, extra: int, layers: int, rank: int) -> None:
        super().__init__()
        full = 4 * width + 1 + extra
        self.concatenated = Concatenated(width=width, extra=extra)
        self.down = nn.ModuleList([nn.Linear(full, rank, bias=False) for _ in range(layers)])
        self.up = nn.ModuleList([nn.Linear(rank, full) for _ in range(layers)])
        self.out_width = 2 * full

    def forward(self, user: Tensor, ad: Tensor, extra: Tensor) -> Tensor:
        """(B, D), (B, D), (B, E) → (B, 2 (4 D + 1 + E))."""
        first = self.concatenated(user, ad, extra)
        x = first
        for down, up in zip(self.down, self.up, strict=True):
            x = first * up(down(x)) + x
        return torch.cat([first, x], -1)


class FactorizationMachine(nn.Module):
    """sum_{i<j} v_i * v_j over the field vectors user, ad and extra, kept elementwise, beside the linear part.

    The pooled pairs are those of Rendle 2010 (eq. 1) before their sum over the width: bi-interaction, He and Chua 2017.
    With `deep` the concatenated fields stand beside them, which the tasks' layers turn into DeepFM (Guo et al. 2017).
    """

    def __init__(self, *, width: int, extra: int, deep: bool) -> None:
        super().__init__()
        self.field = nn.Linear(extra, width)
        self.concatenated = Concatenated(width=width, extra=extra) if deep else None
        self.out_width = width + (self.concatenated.out_width if self.concatenated is not None else extra)

    def forward(self, user: Tensor, ad: Tensor, extra: Tensor) -> Tensor:
        """(B, D), (B, D), (B, E) → (B, D + E), or (B, 5 D + 1 + E) with `deep`."""
        context = self.field(extra)
        total = user + ad + context
        pairs = (total.square() - user.square() - ad.square() - context.square()) / 2
        beside = self.concatenated(user, ad, extra) if self.concatenated is not None else extra
        return torch.cat([pairs, beside], -1)


def interaction(
    kind: Interaction, *, width: int, extra: int, cross_layers: int = 2, cross_rank: int = 32
) -> Dot | Concatenated | CrossNetwork | FactorizationMachine:
    """The interaction by name."""
    match kind:
        case "dot":
            return Dot()
        case "mlp":
            return Concatenated(width=width, extra=extra)
        case "dcn":
            return CrossNetwork(width=width, extra=extra, layers=cross_layers, rank=cross_rank)
        case "fm" | "deepfm":
            return FactorizationMachine(width=width, extra=extra, deep=kind == "deepfm")


class TextMatch(nn.Module):
    """How near the candidate's text is to what the user clicked, skipped, declared and asked for: cosines, no parameters.

    These carry most of what a frozen encoder knows into the scorer from the first step on. Cosines of texts differ by about a
    tenth from each other; SCALE brings them to the size of the other inputs.
    """

    SCALE = 8.0
    SHARPNESS = 20.0

    def __init__(self, *, parts: tuple[int, ...], interests: bool, query: bool, skipped: bool) -> None:
        """`parts` are the widths that a text vector consists of; each is compared by itself."""
        super().__init__()
        self.parts = parts
        self.interests, self.query, self.skipped = interests, query, skipped
        self.out_width = len(parts) * (5 + 2 * int(interests) + int(query) + int(skipped))

    def forward(
        self,
        ads: Tensor,
        history: Tensor,
        history_mask: Tensor,
        context: Tensor,
        ad: Tensor,
        blocks: Blocks,
        interests: Tensor | None = None,
        queries: Tensor | None = None,
        query: Tensor | None = None,
        skipped: Tensor | None = None,
        skipped_mask: Tensor | None = None,
    ) -> Tensor:
        """Text vectors of the ads (A, D); indices (C, H), (B,), ...; interests (C, P, D), queries (Q, D) → (B, out_width).

        Columns: cosine to the mean click, to the mean of the newest five, to the nearest click, to the mean of the three
        nearest, the smooth maximum log(mean(exp(s x))) / s over clicks; then to the mean interest, to the nearest interest, to
        the query and to the mean skipped ad where asked for. 0 where there is nothing to compare with.
        """
        found = []
        for ads_part, interests_part, queries_part in zip(
            self._split(ads), self._split(interests), self._split(queries), strict=True
        ):
            assert ads_part is not None
            found += self._columns(
                ads_part, history, history_mask, context, ad, blocks, interests_part, queries_part, query, skipped, skipped_mask
            )
        return torch.stack(found, -1) * self.SCALE

    def _split(self, vectors: Tensor | None) -> Sequence[Tensor | None]:
        if vectors is None:
            return [None] * len(self.parts)
        ends = list(accumulate(self.parts))
        return [vectors[..., end - width : end] for end, width in zip(ends, self.parts, strict=True)]

    def _columns(
        self,
        ads: Tensor,
        history: Tensor,
        history_mask: Tensor,
        context: Tensor,
        ad: Tensor,
        blocks: Blocks,
        interests: Tensor | None,
        queries: Tensor | None,
        query: Tensor | None,
        skipped: Tensor | None,
        skipped_mask: Tensor | None,
    ) -> list[Tensor]:
        """The columns (B,) of one part of the text vectors."""
        unit = nn.functional.normalize(ads, dim=-1)
        target = unit[ad]  # (B, D)
        clicks = unit[history]  # (C, H, D)
        newest = history_mask & (history_mask.flip(-1).cumsum(-1).flip(-1) <= 5)
        near = blocks.gather(torch.bmm(blocks.spread(target), clicks[blocks.context].transpose(1, 2)))  # (B, H)
        near = near.masked_fill(~history_mask[context], -torch.inf)
        best = near.topk(min(3, near.shape[1]), dim=-1).values  # (B, <=3)
        found = torch.isfinite(best)
        best = best.masked_fill(~found, 0.0)
        columns = [
            _cosine_to_mean(clicks, history_mask, context, target),
            _cosine_to_mean(clicks, newest, context, target),
            best[:, 0],
            best.sum(-1) / found.sum(-1).clamp(min=1),
            self._smooth_maximum(near),
        ]
        if self.interests:
            assert interests is not None
            columns += _interest_cosines(interests, context, target, blocks)
        if self.query:
            assert queries is not None and query is not None
            columns.append((nn.functional.normalize(queries, dim=-1)[query] * target).sum(-1))
        if self.skipped:
            assert skipped is not None and skipped_mask is not None
            columns.append(_cosine_to_mean(unit[skipped], skipped_mask, context, target))
        return columns

    def _smooth_maximum(self, near: Tensor) -> Tensor:
        """(B, H) with -inf where masked → (B,)."""
        count = torch.isfinite(near).sum(-1)
        total = torch.logsumexp((near * self.SHARPNESS).masked_fill((count == 0)[:, None], 0.0), -1)
        return torch.where(count > 0, (total - torch.log(count.clamp(min=1))) / self.SHARPNESS, torch.zeros_like(total))


def category_match(categorical: Tensor, history: Tensor, mask: Tensor, context: Tensor, ad: Tensor) -> Tensor:
    """Share of the history with the candidate's value of each categorical feature, unknown values never matching.

    Categorical codes of the ads (A, F), history (C, H), mask (C, H), context (B,), ad (B,) → (B, F) in [0, 1].
    """
    target = categorical[ad]  # (B, F)
    past = categorical[history]  # (C, H, F)
    same = (past[context] == target[:, None, :]) & (target != 0)[:, None, :] & mask[context][:, :, None]
    return same.sum(1) / mask.sum(-1).clamp(min=1)[context][:, None]


def mean_interest(interests: Tensor) -> Tensor:
    """(C, P, D) → (C, D) mean of the vectors that are there (not zero); zero where there is none."""
    count = interests.any(-1).sum(-1, keepdim=True)
    return interests.sum(1) / count.clamp(min=1)


def _interest_cosines(interests: Tensor, context: Tensor, target: Tensor, blocks: Blocks) -> list[Tensor]:
    """Cosines (B,) of unit vectors `target` (B, D) to the mean of the interests (C, P, D), and to the nearest of them."""
    unit = nn.functional.normalize(interests, dim=-1)
    there = interests.any(-1)  # (C, P)
    near = blocks.gather(torch.bmm(blocks.spread(target), unit[blocks.context].transpose(1, 2)))  # (B, P)
    nearest = near.masked_fill(~there[context], -torch.inf).amax(-1)
    mean = nn.functional.normalize(unit.sum(1), dim=-1)
    return [(mean[context] * target).sum(-1), nearest.masked_fill(torch.isinf(nearest), 0.0)]


def mean_of_history(vectors: Tensor, mask: Tensor) -> Tensor:
    """(C, H, D), (C, H) → (C, D) the mean of the places that `mask` keeps; zero where it keeps none."""
    total = torch.einsum("ch,chd->cd", mask.to(vectors.dtype), vectors)
    return total / mask.sum(-1, keepdim=True).clamp(min=1)


def _cosine_to_mean(vectors: Tensor, mask: Tensor, context: Tensor, target: Tensor) -> Tensor:
    mean = torch.einsum("ch,chd->cd", mask.to(vectors.dtype), vectors)
    return (nn.functional.normalize(mean, dim=-1)[context] * target).sum(-1)
