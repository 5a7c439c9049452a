"""Array types of the ranking functions. R requests, C candidates of a request, A ads, N slots of a list."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]

NamedArrays = TypeVar("NamedArrays", bound=tuple[Any, ...])


def rows_of(arrays: NamedArrays, rows: Ints | slice) -> NamedArrays:
    """The same rows of every array of a NamedTuple of arrays; what is None stays so."""
    make: Any = type(arrays)
    result: NamedArrays = make(*(None if array is None else array[rows] for array in arrays))
    return result
