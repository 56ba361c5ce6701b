"""Which failed calls are tried again, and when. No I/O and no sleeping."""

import math
import random
import time

import grpc

MAX_ATTEMPTS = 5
"""How often a call is tried at most: over about a second and a half, where the server says no other."""

INITIAL_BACKOFF = 0.1
MAX_BACKOFF = 1.0
BACKOFF_MULTIPLIER = 2.0
JITTER = 0.2
"""As gRPC's own retries have it (gRFC A6), so that clients that failed together do not return together."""


class Attempts:
    """The attempts at one call, all of them within its deadline."""

    def __init__(self, seconds: float, most: int | None = MAX_ATTEMPTS) -> None:
        """Begin now.

        Args:
            seconds: What the call may take, its pauses included.
            most: How often it is tried at most. None: until its deadline.
        """
        self._deadline = time.monotonic() + seconds
        self._most = math.inf if most is None else most
        self._failed = 0

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self._deadline - time.monotonic())

    def pause_after(self, code: grpc.StatusCode, retry_after: float | None) -> float | None:
        """Note that an attempt has failed, and say how long to wait before the next.

        Args:
            code: The status that it ended in.
            retry_after: Seconds that the server asked for, by RetryInfo. None: it asked for none.

        Returns:
            Seconds; None where trying again is of no use: the failure is of the call's own making, the
            attempts are spent, or the deadline comes first.
        """
        self._failed += 1
        if self._failed >= self._most or not _is_passing(code, retry_after):
            return None
        backoff = min(MAX_BACKOFF, INITIAL_BACKOFF * BACKOFF_MULTIPLIER ** min(self._failed - 1, 16))
        pause = backoff * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
        if retry_after is not None:
            # Never before the server's time.
            pause = max(pause, retry_after * random.uniform(1, 1 + JITTER))  # noqa: S311
        return pause if pause < self.remaining else None


def _is_passing(code: grpc.StatusCode, retry_after: float | None) -> bool:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Without a time it is gRPC's own word for a message that is too large, and always will be.
        return retry_after is not None
    return code is grpc.StatusCode.UNAVAILABLE
