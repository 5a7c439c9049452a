"""Labels that deny themselves: randomised response, and the numbers that stand for the true labels on average.

Every label is drawn once and then belongs to nobody: whatever is trained, fitted or measured on the drawn ones costs nothing
more (Warner 1965; label privacy: Ghazi et al. 2021). Of their answers for more than two classes none helps a label of yes or
no: with a prior on a row they either randomise the two, as here, or always say the likelier, which says nothing of a click.
"""

import math

import numpy as np
from numpy.typing import NDArray

from adrec.privacy.noise import Noise

Floats = NDArray[np.float32]


def flip_share(epsilon: float) -> float:
    """How many labels are turned around: at 1 / (1 + e^epsilon) either answer is e^epsilon times likelier if it is true."""
    return 1.0 / (1.0 + math.exp(epsilon))


def randomised(labels: Floats, epsilon: float, randomness: Noise) -> Floats:
    """(N,) labels 0 and 1, each turned around with `flip_share`; NaN, a label that is not known, stays."""
    flipped = randomness.chosen(np.full(len(labels), flip_share(epsilon)))
    return np.where(flipped, 1.0 - labels, labels).astype(np.float32)


def debiased(drawn: Floats, epsilon: float) -> Floats:
    """(N,) numbers whose expectation is the true label, from drawn ones: (y - flip) / (1 - 2 flip), beyond 0 and 1.

    Cross-entropy of a logit is linear in its label, so that on them it is an unbiased estimate of the loss on true labels
    (Natarajan et al. 2013).
    """
    flip = flip_share(epsilon)
    return np.asarray((drawn - flip) / (1.0 - 2.0 * flip), np.float32)
