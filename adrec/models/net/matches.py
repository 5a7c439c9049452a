"""The table of matches as a click model reads it, and its text columns where the text encoder is trained with the model.

Shapes: B rows, C contexts, A ads, H history, P interests, Q queries, D width of text vectors, M columns.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from adrec.data.batches.collate import Batch
from adrec.models.match.nearness import interest_nearness, nearness, taste
from adrec.models.match.table import SCALE, MatchSpec, Segment


class Matches(nn.Module):
    """No parameters: these columns carry most of what an encoder knows into the scorer from the first step on."""

    def __init__(
        self, spec: MatchSpec, *, text: bool = True, skips: bool = True, links: bool = True, late: bool = False
    ) -> None:
        """`text`, `skips`, `links` false: the columns of the text, of skipped ads, of links are not read. `late`: those of
        vectors are read by `of_modality` alone.
        """
        super().__init__()
        self.spec = spec
        self.chosen = [
            item
            for item in spec.segments
            if (text or item.part is None) and (skips or not item.is_of_skips) and (links or item.kind != "link") and item.size
        ]
        self.read_here = [item for item in self.chosen if item.modality is None or not late]
        self.out_width = sum(item.size for item in self.read_here)

    @property
    def modality_widths(self) -> list[int]:
        """Columns of each modality: whether the candidate has it, and its cosines."""
        return [sum(item.size for item in self.chosen if item.modality == number) for number in range(self.spec.modalities)]

    def forward(self, batch: Batch, ads: Tensor | None, interests: Tensor | None, queries: Tensor | None) -> Tensor:
        """Every column, (B, M). Text vectors of ads (A, D), interests (C, P, D), queries (Q, D): read where the batch brings no
        columns of the text.
        """
        spec, columns = self.spec, batch.matches
        if self.training and spec.modalities:
            columns = columns * self._not_dropped(batch)
        if any(item.part is not None for item in self.chosen) and columns.shape[1] < spec.width:
            assert ads is not None
            columns = torch.cat([columns, self._text(batch, ads, interests, queries)], -1)
        return columns

    def read(self, columns: Tensor) -> Tensor:
        """(B, M) → (B, out_width) what stands beside the two vectors in the scorer."""
        return self._picked(columns, self.read_here)

    def of_modality(self, columns: Tensor, number: int) -> Tensor:
        """(B, M) → (B, modality_widths[number])."""
        return self._picked(columns, [item for item in self.chosen if item.modality == number])

    @staticmethod
    def _picked(columns: Tensor, items: Sequence[Segment]) -> Tensor:
        picked = [columns[:, item.start : item.stop] * (SCALE if item.is_cosine else 1.0) for item in items]
        return torch.cat(picked, -1) if picked else columns[:, :0]

    def _not_dropped(self, batch: Batch) -> Tensor:
        """(B, columns) zeros where a modality's vector was taken from the candidate, or from the user it is compared with."""
        there = torch.ones_like(batch.matches)
        ads, users = ([(vectors != 0).any(-1) for vectors in side.vectors] for side in (batch.ads, batch.users))
        pairs = iter(user for number in range(self.spec.modalities) for user, ad in self.spec.pairs if ad == number)
        for item in self.spec.segments:
            if item.modality is not None:
                known = ads[item.modality][batch.ad]
                if item.kind == "users":
                    known = known & users[next(pairs)][batch.context]
                there[:, item.start : item.stop] = known[:, None].to(there.dtype)
        return there

    def _text(self, batch: Batch, ads: Tensor, interests: Tensor | None, queries: Tensor | None) -> Tensor:
        """(B, of_text)."""
        spec, blocks, columns = self.spec, batch.blocks, []
        ends = list(accumulate(spec.parts))
        for item in spec.segments:
            if item.part is None:
                continue
            piece = slice(ends[item.part] - spec.parts[item.part], ends[item.part])
            unit = nn.functional.normalize(ads[:, piece], dim=-1)
            target = blocks.spread(unit[batch.ad])  # (N, K, D)
            if item not in self.chosen:
                columns.append(unit.new_zeros(len(batch.ad), item.size))
            elif item.kind in {"clicks", "skips"}:
                clicked = item.kind == "clicks"
                places, mask = (batch.history, batch.history_mask) if clicked else (batch.skipped, batch.skipped_mask)
                columns.append(blocks.gather(nearness(target, unit[places][blocks.context], mask[blocks.context])))
            elif item.kind == "taste":
                shown = torch.cat(
                    [unit[batch.history] * batch.history_mask[..., None], unit[batch.skipped] * batch.skipped_mask[..., None]],
                    1,
                )  # (C, H + S, D)
                liked = torch.cat([batch.history_mask, torch.zeros_like(batch.skipped_mask)], 1)
                columns.append(blocks.gather(taste(target, shown[blocks.context], liked[blocks.context])[..., None]))
            elif item.kind == "interests":
                assert interests is not None
                columns.append(blocks.gather(interest_nearness(target, interests[..., piece][blocks.context])))
            else:
                assert queries is not None
                asked = nn.functional.normalize(queries[:, piece], dim=-1)[batch.query]
                columns.append((asked * unit[batch.ad]).sum(-1, keepdim=True))
        return torch.cat(columns, -1)
