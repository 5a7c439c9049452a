"""Features of rows, ads and users to vectors and weights: numbers, codes of categories, lists of codes.

Shapes: N rows or entities, A ads, Fn numbers, Fc categories, L values of a list, V width of vectors that other models made.
"""

import torch
from torch import Tensor, nn

from adrec.data.batches.collate import LIST_PADDING


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
