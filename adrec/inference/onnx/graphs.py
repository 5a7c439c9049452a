"""The click model and its text encoder as functions of plain tensors, which is what ONNX can hold.

The scorer reads text vectors, so encoder and scorer are two files: vectors are made once an ad and kept. Every axis that counts
rows, ads, users or queries is dynamic, and so are the places of a list; histories have the fixed width of the bundle, padded
and masked.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adrec.data.batches.blocks import blocks_of_one
from adrec.data.batches.collate import LIST_PADDING, Batch, Entities, Texts
from adrec.models.net.ensemble import ClickNetwork
from adrec.models.text.text_vectors import MOST_PHRASES

SETTINGS = "onnx.json"
FORMAT = 3
"""Of the graphs and their inputs: 3 is given the matches of each row and makes none."""
AXES = {"ads": "ads", "users": "contexts", "queries": "queries"}
"""Name of the first axis by the group that an input belongs to."""
CONTEXTS = ("history", "history_mask", "history_hours", "history_length", "skipped", "skipped_mask")
UNREAD = ("blocks", "click_frequency", "group", "labels", "log_frequency", "position", "positive")
"""Parts of a batch that only training reads, or that a graph makes for itself."""


def flat(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch that scoring reads, by dotted name; tensors without a column are left out."""
    return {name: tensor for name, tensor in _walk(batch, "") if tensor.ndim == 1 or tensor.shape[1] > 0}


def first_axis(name: str) -> str:
    """What the rows of an input count: ads, contexts, queries or rows."""
    group = name.split(".")[0]
    if group in AXES:
        return AXES[group]
    return "contexts" if group in CONTEXTS else "rows"


def is_list(name: str) -> bool:
    """Whether an input holds the values of a list, whose places may be any number."""
    return "lists" in name.split(".")


def padded_batch(batch: Batch, *, history: int, skipped: int, lists: int | dict[str, int] = 1) -> Batch:
    """The batch with histories of exactly `history` places, skipped ads of `skipped`, and each list of `lists` at least.

    What the collator gives is never longer than the bundle's own widths. `lists` may name a width for each list; a longer one
    keeps its length.
    """

    def widened(codes: tuple[Tensor, ...], group: str) -> tuple[Tensor, ...]:
        least = [lists if isinstance(lists, int) else lists[f"{group}lists.{number}"] for number in range(len(codes))]
        return tuple(_fit(part, max(width, part.shape[1]), LIST_PADDING) for part, width in zip(codes, least, strict=True))

    return batch._replace(
        ads=batch.ads._replace(lists=widened(batch.ads.lists, "ads.")),
        users=batch.users._replace(texts=_all_phrases(batch.users.texts), lists=widened(batch.users.lists, "users.")),
        lists=widened(batch.lists, ""),
        history=_fit(batch.history, history, 0),
        history_mask=_fit(batch.history_mask, history, False),
        history_hours=_fit(batch.history_hours, history, 0.0),
        skipped=_fit(batch.skipped, skipped, 0),
        skipped_mask=_fit(batch.skipped_mask, skipped, False),
    )


class Scorer(nn.Module):
    """`flat(batch)` in the order of `names` → (B, K) logits."""

    def __init__(self, model: ClickNetwork, names: list[str], template: Batch) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.widths = {name: tensor.shape[1:] for name, tensor in _walk(template, "")}
        self.types = {name: tensor.dtype for name, tensor in _walk(template, "")}

    def forward(self, *tensors: Tensor) -> Tensor:
        """The logits."""
        tensors_by_name = dict(zip(self.names, tensors, strict=True))
        ads, contexts, rows = tensors_by_name["ads.identity"], tensors_by_name["history"], tensors_by_name["context"]
        counts = {"ads": ads, "contexts": contexts, "rows": rows, "queries": tensors_by_name.get("queries.vectors", rows)}

        def piece(name: str) -> Tensor:
            if name in tensors_by_name:
                return tensors_by_name[name]
            like = counts[first_axis(name)]
            return torch.zeros((like.shape[0], *self.widths[name]), dtype=self.types[name])

        def lists(prefix: str) -> tuple[Tensor, ...]:
            return tuple(tensors_by_name[name] for name in self.names if name.startswith(f"{prefix}lists."))

        def entities(group: str) -> Entities:
            return Entities(
                Texts(tensors_by_name.get(f"{group}.texts.vectors")),
                piece(f"{group}.numeric"),
                piece(f"{group}.categorical"),
                lists(f"{group}."),
                piece(f"{group}.identity"),
                tuple(tensors_by_name[name] for name in self.names if name.startswith(f"{group}.vectors.")),
            )

        zeros = torch.zeros_like(rows)
        logits: Tensor = self.model(
            Batch(
                ads=entities("ads"),
                users=entities("users"),
                **{name: piece(name) for name in CONTEXTS},
                queries=Texts(tensors_by_name.get("queries.vectors")),
                context=rows,
                blocks=blocks_of_one(rows),
                ad=piece("ad"),
                query=piece("query"),
                numeric=piece("numeric"),
                categorical=piece("categorical"),
                lists=lists(""),
                matches=piece("matches"),
                position=zeros,
                group=zeros,
                labels=torch.zeros((rows.shape[0], 0)),
                positive=zeros[:0],
                log_frequency=torch.zeros((rows.shape[0],)),
            )
        ).logits
        return logits


def _walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if name.split(".")[0] not in UNREAD:
            yield name, value
        return
    if isinstance(value, tuple):
        for key, part in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
            yield from _walk(part, f"{name}.{key}" if name else str(key))


def _all_phrases(texts: Texts) -> Texts:
    """Interests (N, any, D) → (N, MOST_PHRASES, D)."""
    if texts.vectors is None or texts.vectors.ndim == 2:
        return texts
    return Texts(_fit(texts.vectors, MOST_PHRASES, 0.0))


def _fit(tensor: Tensor, width: int, fill: float) -> Tensor:
    """(N, any, ...) → (N, width, ...), padded or cut at the end."""
    if tensor.shape[1] >= width:
        return tensor[:, :width]
    padding = tensor.new_full((tensor.shape[0], width - tensor.shape[1], *tensor.shape[2:]), fill)
    return torch.cat([tensor, padding], 1)
