"""What the policies of a config say, over arrays: what a candidate is worth, what mixes lists, what limits them.

Shapes: R requests, C candidates of each.
"""

from collections.abc import Sequence

import numpy as np

from adrec.config.inference.rank import Policy
from adrec.data.examples import Examples
from adrec.errors import ConfigError
from adrec.inference.click_model import Scores
from adrec.inference.lists.catalogue import AdColumns
from adrec.inference.lists.pairs import category_shares
from adrec.ranking.arrays import Floats, Ints
from adrec.ranking.auction import revenue, weighted
from adrec.ranking.diversify import ByValue, CalibratedCategories, Diversifier, MaximalMarginalRelevance
from adrec.ranking.explore import logit_deviation
from adrec.ranking.ledger import UNLIMITED
from adrec.ranking.policy import Candidates, DiversifierOf, ListPolicy

PRIOR_IMPRESSIONS = 200.0
"""How many impressions the model's own score is worth for an ad never shown in training, where lists explore by Thompson."""


def list_policy(policy: Policy) -> ListPolicy:
    """Its rules, limits and exploration, as what makes the lists takes them."""
    limits, exploration = policy.limits, policy.exploration

    def cap(value: int | None) -> int:
        return UNLIMITED if value is None else value

    return ListPolicy(
        top_n=policy.top_n,
        auctioned=policy.value.kind == "revenue",
        reserve=policy.value.reserve,
        minimum_value=policy.value.minimum,
        per_advertiser=cap(limits.per_advertiser),
        per_category=cap(limits.per_category),
        user_ad=cap(limits.user_ad),
        user_campaign=cap(limits.user_campaign),
        campaign=cap(limits.campaign),
        user_lists=cap(limits.user_lists),
        budget=limits.budget,
        even_pacing=limits.pacing == "even",
        epsilon=exploration.epsilon if exploration.method == "epsilon" else 0.0,
        thompson=exploration.method == "thompson",
    )


def values_of(policies: Sequence[Policy], policy: Ints, score: Floats, bid: Floats, place: Ints, scores: Scores) -> Floats:
    """(R, C) what each candidate is worth by the policy of its request, index `policy` (R,).

    score: (R, C) in [0, 1]; bid: (R, C), NaN where there is none; place: (N,) flat positions of the candidates that are there,
    to which `scores` belong. Raises ConfigError where a weight names a task that the bundle lacks.
    """
    value = np.zeros(score.shape)
    for index, own in enumerate(policies):
        mine = policy == index
        if own.value.kind == "revenue":
            value[mine] = revenue(score[mine], bid[mine])
        elif own.value.kind == "score":
            value[mine] = score[mine]
        else:
            total = np.zeros(score.shape)
            total.ravel()[place] = weighted(_outputs(scores, own), own.value.weights)
            value[mine] = np.maximum(total[mine], 0.0)
    return value


def deviations(policies: Sequence[Policy], policy: Ints, score: Floats, impressions: Ints) -> Floats:
    """(R, C) how sure a candidate's logit is, for lists that explore by Thompson; 0 under other policies.

    impressions: (R, C) of the candidate's ad in training.
    """
    deviation = np.zeros(score.shape)
    for index, own in enumerate(policies):
        if own.exploration.method == "thompson":
            mine = policy == index
            deviation[mine] = logit_deviation(score[mine], impressions[mine], prior_impressions=PRIOR_IMPRESSIONS)
    return deviation


def diversifier(
    policy: Policy, candidates: Candidates, examples: Examples, ads: AdColumns, unit_vectors: Floats
) -> DiversifierOf:
    """What mixes the lists of some requests of a block. unit_vectors: (A, D) of the catalogue's ads."""
    strength = policy.diversity.strength
    vectors: Floats | None = None  # of the block's candidates, gathered once for all windows

    def none(rows: Ints) -> Diversifier:
        return ByValue((len(rows), candidates.ad.shape[1]))

    def mmr(rows: Ints) -> Diversifier:
        nonlocal vectors
        if vectors is None:
            vectors = unit_vectors[np.maximum(candidates.ad, 0)]
        return MaximalMarginalRelevance(vectors[rows] if len(rows) < len(vectors) else vectors, strength=strength)

    def calibrated(rows: Ints) -> Diversifier:
        shares = category_shares(examples, ads.category, len(ads.categories))
        return CalibratedCategories(candidates.category[rows], shares[rows], strength=strength)

    return {"none": none, "mmr": mmr, "calibrated": calibrated}[policy.diversity.method]


def _outputs(scores: Scores, policy: Policy) -> dict[str, np.ndarray]:
    outputs = {"click": scores.score, **scores.tasks}
    unknown = [task for task in policy.value.weights if task not in outputs]
    if unknown:
        raise ConfigError(f"value.weights: the bundle has no task '{unknown[0]}'. Tasks: {', '.join(outputs)}.")
    return outputs
