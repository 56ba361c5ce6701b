"""Requests on their way: how many may be at a time, and what becomes of one that keeps others waiting."""

import asyncio
from typing import Any

from serving import refusal
from serving.grpc_calls import Call

PATIENCE_SECONDS = 5.0
"""How long a request may take to arrive, where others wait to be read; the more wait, the less, so that the
last of them is not made to wait for much longer."""

LEAST_PATIENCE_SECONDS = 0.5

LOOK_SECONDS = 0.1
"""Between two looks whether one has taken longer."""


class Reading:
    """Reads requests, so many at a time. Belongs to an event loop.

    What has come of a message is kept until all of it has. But before it is asked for, no more of it is taken
    than a stream's window, 64 KiB. So memory is bounded by how many are asked for at a time. Whoever is slow
    keeps his place until his time is over and others want it; then his call is refused.
    """

    def __init__(self, places: int) -> None:
        """Begin with nothing read.

        Args:
            places: Requests that may be on their way at a time, at least 1.
        """
        self._count = places
        self._places = asyncio.Semaphore(places)
        self._loop = asyncio.get_running_loop()
        # When each began, the longest under way first.
        self._began: dict[asyncio.Task[Any], float] = {}
        self._cut_off: set[asyncio.Task[Any]] = set()
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, context: Call) -> bytes | None:
        """Read the next message of a call, in the call's task.

        Returns:
            None where there is no more.

        Raises:
            Refusal: It did not come in time, and others waited.
        """
        # It takes no place that others wait for, and most requests have come by now.
        if context.has_come():
            return await context.read()
        if self._places.locked():
            await self._wait()
        else:
            await self._places.acquire()
        task = asyncio.current_task(self._loop)
        assert task  # noqa: S101
        self._began[task] = self._loop.time()
        try:
            message = await context.read()
        except asyncio.CancelledError:
            # Unless the call ended meanwhile.
            if task in self._cut_off and not task.uncancel():
                raise refusal.too_slow() from None
            raise
        finally:
            self._cut_off.discard(task)
            del self._began[task]
            self._places.release()
        return message

    async def _wait(self) -> None:
        """Wait for a place."""
        self._waiting += 1
        try:
            self._make_room()
            if self._timer is None:
                self._timer = self._loop.call_later(LOOK_SECONDS, self._look)
            await self._places.acquire()
        finally:
            self._waiting -= 1

    def _look(self) -> None:
        """See again and again whether somebody has become slow, as long as others wait."""
        self._timer = None
        if self._waiting:
            self._make_room()
            self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def _make_room(self) -> None:
        """Cut off the slow, the slowest first, and no more than there are others who wait."""
        wanted = self._waiting - len(self._cut_off)
        patience = PATIENCE_SECONDS * self._count / (self._count + self._waiting)
        latest = self._loop.time() - max(patience, LEAST_PATIENCE_SECONDS)
        for task, began in self._began.items():
            if wanted <= 0 or began > latest:
                break
            if task not in self._cut_off:
                self._cut_off.add(task)
                task.cancel()
                wanted -= 1
