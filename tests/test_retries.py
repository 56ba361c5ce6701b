"""Which failures are tried again, and when."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.retries import MAX_ATTEMPTS, Attempts

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
SECONDS = st.floats(0.001, 1000)


def test_the_pause_doubles_up_to_a_second_with_a_fifth_of_jitter() -> None:
    attempts = Attempts(1000, most=None)
    pauses = [attempts.pause_after(UNAVAILABLE, None) for _ in range(1100)]
    for pause, backoff in zip(pauses, [0.1, 0.2, 0.4, 0.8] + [1.0] * 1096, strict=True):
        assert pause is not None
        assert 0.8 * backoff <= pause <= 1.2 * backoff
    assert len(set(pauses)) > 1000


@given(st.sampled_from([UNAVAILABLE, EXHAUSTED]), SECONDS)
def test_the_servers_time_is_never_cut_short(code: grpc.StatusCode, asked: float) -> None:
    pause = Attempts(1e6).pause_after(code, asked)
    assert pause is not None
    assert asked <= pause <= max(0.12, 1.2 * asked)


@given(SECONDS, st.none() | SECONDS)
def test_a_pause_ends_before_the_deadline(seconds: float, asked: float | None) -> None:
    attempts = Attempts(seconds, most=None)
    while (pause := attempts.pause_after(UNAVAILABLE, asked)) is not None:
        assert pause < seconds
        if attempts._failed > 20:
            break
    if asked is not None and asked >= seconds:
        assert pause is None


def test_attempts_are_counted() -> None:
    attempts = Attempts(1000)
    pauses = [attempts.pause_after(UNAVAILABLE, 0.0) for _ in range(MAX_ATTEMPTS)]
    assert None not in pauses[:-1]
    assert pauses[-1] is None


@pytest.mark.parametrize("code", sorted(set(grpc.StatusCode) - {UNAVAILABLE, EXHAUSTED}, key=str))
def test_what_the_caller_must_change_is_not_tried_again(code: grpc.StatusCode) -> None:
    assert Attempts(1000).pause_after(code, 0.1) is None


def test_a_message_that_is_too_large_is_not_tried_again() -> None:
    assert Attempts(1000).pause_after(EXHAUSTED, None) is None
