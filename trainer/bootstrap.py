"""How sure a mean over queries is: the paired bootstrap."""

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
AT_A_TIME = 50
CONFIDENCE = 0.95


def bootstrap_intervals(values: NDArray[np.float64], *, seed: int = 0) -> NDArray[np.float64]:
    """Give the 95 % confidence interval of each column's mean, by the percentiles of its resampled means.

    Rows are drawn with replacement, all columns of a row together: what is measured of two models over the
    same queries stays paired. Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993,
    chapter 13; over queries: Sakai, "Evaluating evaluation metrics based on the bootstrap", 2006.

    Args:
        values: float64, shape (queries, columns), at least one query.
        seed: Decides what is drawn.

    Returns:
        float64, shape (2, columns): the lower and the upper ends.
    """
    rng = np.random.default_rng(seed)
    queries = len(values)
    shares = np.full(queries, 1 / queries)
    # How often each row is drawn is all that a mean needs to know.
    means = [
        rng.multinomial(queries, shares, size=AT_A_TIME) @ values / queries
        for _ in range(RESAMPLES // AT_A_TIME)
    ]
    tail = (1 - CONFIDENCE) / 2
    ends: NDArray[np.float64] = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return ends
