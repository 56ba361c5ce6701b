"""Token buckets: the rate holds over time, whatever is asked for and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.rates import Bucket


def test_a_burst_passes_and_the_next_waits_for_the_rate() -> None:
    bucket = Bucket(rate=2, size=3)
    for _ in range(3):
        assert bucket.wait(1, now=100) == 0
        bucket.take(1, now=100)
    assert bucket.wait(1, now=100) == pytest.approx(0.5)
    assert bucket.wait(1, now=100.5) == 0


def test_more_than_it_holds_passes_when_it_is_full_and_is_paid_for_after() -> None:
    bucket = Bucket(rate=10, size=5)
    assert bucket.wait(100, now=0) == 0
    bucket.take(100, now=0)
    assert bucket.wait(1, now=0) == pytest.approx(9.6)
    assert bucket.wait(100, now=9.5) == pytest.approx(0.5)
    assert bucket.wait(100, now=10) == 0


@given(
    st.floats(0.1, 1000),
    st.floats(1, 100),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 50)), max_size=50),
)
def test_what_passes_is_never_more_than_rate_and_size_allow(
    rate: float, size: float, calls: list[tuple[float, float]]
) -> None:
    bucket = Bucket(rate, size)
    now = passed = largest = 0.0
    for pause, amount in calls:
        now += pause
        if bucket.wait(amount, now) == 0:
            bucket.take(amount, now)
            passed += amount
            largest = max(largest, amount)
    assert passed <= size + largest + rate * now + 1e-6


@given(st.floats(0.1, 1000), st.floats(1, 100), st.lists(st.floats(0, 500), min_size=1, max_size=20))
def test_after_the_wait_it_passes(rate: float, size: float, amounts: list[float]) -> None:
    bucket = Bucket(rate, size)
    now = 0.0
    for amount in amounts:
        now += bucket.wait(amount, now)
        # But for rounding.
        assert bucket.wait(amount, now) < 1e-6
        bucket.take(amount, now)
