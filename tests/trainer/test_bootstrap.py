"""The paired bootstrap: scipy's intervals, and a difference that is surer than its parts."""

import numpy as np
import pytest

from trainer.bootstrap import bootstrap_intervals


def test_the_intervals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).beta(2, 1, size=(300, 2))
    lower, upper = bootstrap_intervals(values)
    for column in range(2):
        wanted = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=5000, method="percentile", rng=2
        ).confidence_interval
        assert (lower[column], upper[column]) == pytest.approx(wanted, abs=3e-3)


def test_queries_stay_paired_and_the_seed_decides() -> None:
    before = np.random.default_rng(1).random(200)
    values = np.stack([before, before + 0.01, np.full(200, 0.01)], axis=1)
    lower, upper = bootstrap_intervals(values, seed=3)
    assert lower[1] - lower[0] == pytest.approx(0.01)
    assert (lower[2], upper[2]) == pytest.approx((0.01, 0.01))
    assert np.array_equal(bootstrap_intervals(values, seed=3), (lower, upper))
    assert not np.array_equal(bootstrap_intervals(values, seed=4), (lower, upper))


def test_one_query_has_an_interval_of_its_own_value() -> None:
    assert bootstrap_intervals(np.array([[0.5]])).tolist() == [[0.5], [0.5]]
