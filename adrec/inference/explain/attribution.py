"""Contributions that add up to logit minus baseline: integrated gradients along the continuous inputs, Shapley over the rest.

The baseline is an ad whose words are masked, clicks on an average ad, an average user at an average moment, every category
unknown. From there the row is reached in two legs, and the contributions of both are summed:

1. the discrete inputs (categories, identities, history length) are put in place one by one, in antithetic random orders, and
   each is given its mean effect: sampled Shapley values (Castro et al. 2009). Every order adds up exactly.
2. text, clicks and numbers move along a straight line: integrated gradients (Sundararajan et al. 2017, via captum), with
   twice the steps until what is missing from the sum is below `tolerance`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adrec.errors import ResourceError
from adrec.inference.explain.variants import Continuous, Discrete, Row

FIRST_STEPS, MOST_STEPS = 32, 1024
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Attribution:
    """Contributions to the network's logit, in log-odds. `baseline` + the sum of all parts + `missing` = `logit`."""

    logit: float
    baseline: float
    tokens: NDArray[np.float64]
    """(T,) of the candidate's tokens; (1,) for the whole text where there are no tokens; (0,) without text"""
    clicks: NDArray[np.float64]
    """(H,) text, numbers and categories of each past click"""
    skipped: NDArray[np.float64]
    """(S,)"""
    interests: float
    query: float
    numeric: NDArray[np.float64]
    """(Fn,) of the impression"""
    ad_numeric: NDArray[np.float64]
    """(Fa,) of the candidate"""
    user_numeric: NDArray[np.float64]
    categorical: NDArray[np.float64]
    ad_categorical: NDArray[np.float64]
    """of the candidate, its part in matching the history included"""
    user_categorical: NDArray[np.float64]
    lists: NDArray[np.float64]
    """(L,) items of the impression's list features, one list after the other, what repeats counted where it stands first; then
    those of the candidate (La,) and of the user (Lu,)"""
    ad_lists: NDArray[np.float64]
    user_lists: NDArray[np.float64]
    ad_identity: float
    user_identity: float
    history_length: float
    missing: float
    """What the numerical integral left out."""
    steps: int


def attribute(
    row: Row,
    continuous: Continuous,
    discrete: Discrete,
    start: Continuous,
    *,
    orders: int = 4,
    tolerance: float = 1e-3,
    generator: np.random.Generator,
) -> Attribution:
    """Contributions of every input of a row. `start` holds the baseline's continuous inputs, shaped as `continuous`.

    `orders` pairs of random orders for the discrete inputs. Raises ResourceError without captum.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise ResourceError("explanations need captum. Run: pip install 'adrec[explain]'") from None
    names, masks = _players(row, discrete)
    effects, baseline = _shapley(row, start, discrete, masks, len(names), orders, generator)

    def forward(*inputs: Tensor) -> Tensor:
        count = len(inputs[0])
        here = Discrete(*(part.expand(count, *part.shape[1:]) for part in discrete))
        # Inputs that this model does not read still need a gradient, of zero.
        unread = sum(part.flatten(1).sum(1) for part in inputs) * 0.0
        return row.logits(Continuous(*inputs), here) + unread

    with torch.no_grad():
        logit, middle = (float(forward(*inputs)[0]) for inputs in (continuous, start))
    method, steps = IntegratedGradients(forward, multiply_by_inputs=True), FIRST_STEPS
    while True:
        parts = method.attribute(
            tuple(continuous), tuple(start), n_steps=steps, method="gausslegendre", internal_batch_size=ROWS_AT_ONCE
        )
        missing = logit - middle - float(sum(part.double().sum() for part in parts))
        if abs(missing) <= tolerance / 2 or steps >= MOST_STEPS:
            break
        steps *= 2
    return _gather(row, Continuous(*parts), names, effects, logit=logit, baseline=baseline, missing=missing, steps=steps)


def _players(row: Row, discrete: Discrete) -> tuple[list[tuple[str, int]], Callable[[NDArray[np.bool_]], Discrete]]:
    """The discrete inputs that are there, by name and number, and what makes N variants of a (N, P) mask of them."""
    names: list[tuple[str, int]] = []
    for kind, codes in (
        ("categorical", discrete.categorical[0]),
        ("ad_categorical", discrete.ad_categorical[0, 0]),
        ("user_categorical", discrete.user_categorical[0]),
    ):
        names += [(kind, int(column)) for column in torch.nonzero(codes).flatten()]
    items = {kind: row.first_items(kind) for kind in ("lists", "ad_lists", "user_lists")}
    for kind, first in items.items():
        names += [(kind, place) for place, firsts in enumerate(first) if place == firsts]
    names += [("click", place) for place in range(1, discrete.ad_categorical.shape[1])]
    if discrete.ad_identity[0, 0]:
        names.append(("ad_identity", 0))
    if discrete.user_identity[0]:
        names.append(("user_identity", 0))
    if discrete.history_length[0]:
        names.append(("history_length", 0))

    def masks(present: NDArray[np.bool_]) -> Discrete:
        there = torch.from_numpy(present).to(discrete.categorical.device)
        made = Discrete(*(part.new_zeros((len(there), *part.shape[1:])) for part in discrete))
        for player, (kind, number) in enumerate(names):
            on = there[:, player]
            if kind == "click":
                made.ad_categorical[on, number] = discrete.ad_categorical[0, number]
                made.ad_identity[on, number] = discrete.ad_identity[0, number]
                made.ad_lists[on, number] = discrete.ad_lists[0, number]
                continue
            whole: Tensor = getattr(made, kind)
            part: Tensor = getattr(discrete, kind)
            if kind in items:
                same = torch.from_numpy(items[kind] == number).to(there.device)
                (whole[:, 0] if kind == "ad_lists" else whole)[on[:, None] & same] = 1.0
            elif kind == "ad_categorical":
                whole[on, 0, number] = part[0, 0, number]
            elif kind == "ad_identity":
                whole[on, 0] = part[0, 0]
            elif part.ndim == 1:
                whole[on] = part[0]
            else:
                whole[on, number] = part[0, number]
        return made

    return names, masks


def _shapley(
    row: Row,
    start: Continuous,
    discrete: Discrete,
    masks: Callable[[NDArray[np.bool_]], Discrete],
    players: int,
    orders: int,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float64], float]:
    """Mean marginal effect of each discrete input over antithetic orders, (P,), and the logit of the baseline."""
    chosen = [generator.permutation(players) for _ in range(orders)]
    chosen += [order[::-1] for order in chosen]
    present = np.zeros((len(chosen), players + 1, players), bool)
    for number, order in enumerate(chosen):
        rank = np.empty(players, int)
        rank[order] = np.arange(players)
        present[number] = rank[None, :] < np.arange(players + 1)[:, None]
    flat = present.reshape(-1, players)
    # Tokens are the same in every variant: the candidate's vector is made once.
    with torch.no_grad():
        fixed = start._replace(text=row.text_vector(start.text))
        bare = replace(row, attention_mask=None)
        values = [
            bare.logits(Continuous(*(part.expand(len(rows), *part.shape[1:]) for part in fixed)), masks(rows))
            for rows in np.array_split(flat, max(1, len(flat) // ROWS_AT_ONCE))
        ]
    logits = torch.cat(values).double().cpu().numpy().reshape(len(chosen), players + 1)
    effects = np.zeros(players)
    for order, steps in zip(chosen, np.diff(logits, axis=1), strict=True):
        effects[order] += steps / len(chosen)
    return effects, float(logits[0, 0])


def _gather(
    row: Row,
    parts: Continuous,
    names: list[tuple[str, int]],
    effects: NDArray[np.float64],
    *,
    logit: float,
    baseline: float,
    missing: float,
    steps: int,
) -> Attribution:
    of = {key: float(value) for key, value in zip(names, effects, strict=True)}
    clicks = row.clicks
    text = _array(parts.text)
    if row.has_text:
        tokens = text.sum(-1) if row.attention_mask is not None else text.sum(keepdims=True)
    else:
        tokens = np.zeros(0)
    ad_numeric = _array(parts.ad_numeric)
    past = ad_numeric[1:].sum(-1) + np.array([of.get(("click", place), 0.0) for place in range(1, len(ad_numeric))])
    if row.has_text:
        past = past + np.concatenate([_array(parts.clicks).sum(-1), _array(parts.skipped).sum(-1)])

    def columns(kind: str, width: int) -> NDArray[np.float64]:
        return np.array([of.get((kind, column), 0.0) for column in range(width)])

    batch = row.batch
    return Attribution(
        logit=logit,
        baseline=baseline,
        tokens=tokens,
        clicks=past[:clicks],
        skipped=past[clicks:],
        interests=float(_array(parts.interests).sum()),
        query=float(_array(parts.query).sum()),
        numeric=_array(parts.numeric),
        ad_numeric=ad_numeric[0],
        user_numeric=_array(parts.user_numeric),
        categorical=columns("categorical", batch.categorical.shape[1]),
        ad_categorical=columns("ad_categorical", batch.ads.categorical.shape[1]),
        user_categorical=columns("user_categorical", batch.users.categorical.shape[1]),
        lists=columns("lists", len(row.first_items("lists"))),
        ad_lists=columns("ad_lists", len(row.first_items("ad_lists"))),
        user_lists=columns("user_lists", len(row.first_items("user_lists"))),
        ad_identity=of.get(("ad_identity", 0), 0.0),
        user_identity=of.get(("user_identity", 0), 0.0),
        history_length=of.get(("history_length", 0), 0.0),
        missing=missing,
        steps=steps,
    )


def _array(part: Tensor) -> NDArray[np.float64]:
    """The single variant, without its first axis."""
    return part[0].detach().double().cpu().numpy()
