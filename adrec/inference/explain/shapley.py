"""Contributions that add up: sampled Shapley values of named inputs, over orders in which the inputs of a group stand together.

The value of a set of inputs is the scorer's logit of the row with all others taken away. Every order adds up exactly to the
difference between the row and the row without any of them; an input's contribution is its mean effect over antithetic pairs of
random orders (Castro, Gomez, Tejada 2009). Inputs of one group (the words of a text, the clicks of a history) follow each other
in every order (Owen 1977), so that a long text does not crowd out a query. Costs one evaluation for each input and order.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Present = NDArray[np.bool_]
"""(N, P) which of P inputs each of N variants has."""
Values = NDArray[np.float64]


def shapley(
    value: Callable[[Present], Values], groups: Sequence[NDArray[np.int64]], *, pairs: int, generator: np.random.Generator
) -> tuple[Values, float, float]:
    """Contributions (P,), and the values without any input and with all. `groups` split the inputs 0 to P - 1.

    `value` is asked once, for distinct variants.
    """
    inputs = sum(len(group) for group in groups)
    orders = []
    for _ in range(pairs):
        order = np.concatenate([generator.permutation(groups[number]) for number in generator.permutation(len(groups))])
        orders += [order, order[::-1]]
    place = np.argsort(np.array(orders).reshape(len(orders), inputs), axis=1)
    present = place[:, None, :] < np.arange(inputs + 1)[:, None]  # (orders, P + 1, P)
    distinct, which = np.unique(present.reshape(-1, inputs), axis=0, return_inverse=True)
    values = value(distinct)[which.reshape(-1)].reshape(len(orders), inputs + 1)
    effects = np.zeros(inputs)
    for order, steps in zip(orders, np.diff(values, axis=1), strict=True):
        effects[order] += steps / len(orders)
    return effects, float(values[0, 0]), float(values[0, -1])
