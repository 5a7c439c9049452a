"""Networks of several seeds as one: the mean of their logits (Lakshminarayanan et al. 2017).

On small logs the seed decides as much as any hyper-parameter; the mean is steadier and a little better than any of them.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from adrec.data.batches.collate import Batch, Entities, Texts
from adrec.models.net.ctr_model import CTRModel, Outputs


class Ensemble(nn.Module):
    """M click models over one frozen text encoder. To callers it is a click model whose vectors are M times as wide.

    User and ad vectors are the members' end to end: their dot product is the sum of the members' dot products.
    """

    text_encoder: nn.Module | None = None

    def __init__(self, members: Sequence[CTRModel]) -> None:
        super().__init__()
        if any(member.text_encoder is not None for member in members):
            raise ValueError("members of an ensemble share one frozen text encoder")
        self.members = nn.ModuleList(members)

    def forward(self, batch: Batch) -> Outputs:
        """Mean logits (B, K), users (C, M D), ads (A, M D)."""
        outputs: list[Outputs] = [member(batch) for member in self.members]
        return outputs[0]._replace(
            logits=torch.stack([output.logits for output in outputs]).mean(0),
            users=torch.cat([output.users for output in outputs], -1),
            ads=torch.cat([output.ads for output in outputs], -1),
        )

    def slot_effects(self) -> Tensor | None:
        """(placements, slots + 1) the mean of the members' effects; None where they learned none."""
        effects = [cast(CTRModel, member).slot_effects() for member in self.members]
        known = [effect for effect in effects if effect is not None]
        return torch.stack(known).mean(0) if known else None

    def text_vectors(self, texts: Texts) -> Tensor | None:
        """(N, E): given with the batch."""
        return texts.vectors

    def encode_ads(self, ads: Entities) -> Tensor:
        """(A, M D) ad vectors."""
        return torch.cat([cast(CTRModel, member).encode_ads(ads) for member in self.members], -1)

    def encode_users(self, batch: Batch) -> Tensor:
        """(C, M D) user vectors."""
        return torch.cat([cast(CTRModel, member).encode_users(batch) for member in self.members], -1)


ClickNetwork = CTRModel | Ensemble
