"""Long histories: the few clicks that concern a candidate, found before any attention reads them.

Attention over ten thousand clicks for every candidate is what nobody can pay; a comparison of whole numbers is cheap. Each row
gets the places of at most `top` clicks, the newest first among equals: the history behind `target` costs what `top` clicks do.

Shapes: B rows, C contexts, A ads, H history, S clicks found (`top`, or H where that is less), E width of text vectors.
"""

import torch
from torch import Tensor, nn

from adrec.data.batches.collate import Batch

BITS = 64
"""Of a text's code."""


class CategorySearch(nn.Module):
    """The newest clicks on ads of the candidate's category (hard search of SIM, Pi et al. 2020); none where it is unknown.

    `category` is the column of the ads' categorical features.
    """

    def __init__(self, *, top: int, category: int) -> None:
        super().__init__()
        self.top, self.category = top, category

    def forward(self, batch: Batch, text: Tensor | None) -> tuple[Tensor, Tensor]:
        """→ places in the history (B, S), and whether each is one (B, S)."""
        codes = batch.ads.categorical[:, self.category]
        asked = codes[batch.ad][:, None]
        same = (codes[batch.history] * batch.history_mask)[batch.context] == asked  # (B, H); padding has code 0
        newer = torch.arange(1, same.shape[1] + 1, device=same.device)
        return _best(same * newer * (asked > 0), self.top)


class HashedSearch(nn.Module):
    """The clicks whose texts are nearest to the candidate's, by how many bits their codes share (ETA, Chen et al. 2021).

    A bit says on which side of a random plane the text's vector lies (SimHash, Charikar 2002), so that the share of equal bits
    tells the angle. ETA hashes the trained vectors of ads; here it is those of a frozen text encoder, in double precision: they
    are the same in every batch to the last bit, and so is what is found.
    """

    planes: Tensor

    def __init__(self, *, top: int, text_width: int) -> None:
        super().__init__()
        self.top = top
        self.register_buffer("planes", nn.init.normal_(torch.empty(text_width, BITS)))

    def forward(self, batch: Batch, text: Tensor | None) -> tuple[Tensor, Tensor]:
        """Text vectors (A, E) → places in the history (B, S), and whether each is one (B, S). No text is near nothing."""
        assert text is not None
        codes = (text.double() @ self.planes.double() > 0).float() * 2 - 1  # (A, BITS)
        shared = (codes[batch.ad] @ codes.T + BITS).long() // 2  # (B, A), exact: small whole numbers
        there = (batch.history_mask & text.any(-1)[batch.history])[batch.context]  # (B, H)
        newer = torch.arange(1, there.shape[1] + 1, device=there.device)
        near = shared.gather(1, batch.history[batch.context])  # (B, H)
        return _best(there * (near * there.shape[1] + newer), self.top, len(newer))


def _best(keys: Tensor, top: int, period: int | None = None) -> tuple[Tensor, Tensor]:
    """Whole numbers (B, H), all different but for 0, which is none: the places of the highest, and whether they are one.

    A key is its place, from 1, plus some multiple of `period`.
    """
    highest = keys.topk(min(top, keys.shape[1]), dim=1).values
    places = highest - 1 if period is None else (highest - 1).remainder(period)
    return places.clamp(min=0), highest > 0
