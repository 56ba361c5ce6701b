"""Takes what comes to an event loop together, every few milliseconds, while much of it has to wait anyway.

As network cards do with their interrupts: to be woken for each costs more than to serve it, where something
else, the model, has the cores and their caches meanwhile.
"""

import asyncio
from collections.abc import Callable
from time import sleep

PAUSE_SECONDS = 0.002
"""What comes waits up to so long."""

TURNS = 4
"""Of the loop between two pauses: what was read is answered, and the answer sent, within them."""


class Coalescing:
    """Has an event loop pause between its turns, as long as that is wanted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wanted: Callable[[], bool]) -> None:
        """Make one, that does nothing yet.

        Args:
            loop: Whose turns they are.
            wanted: Whether to pause; asked before each pause.
        """
        self._loop = loop
        self._wanted = wanted
        self._on = False

    def start(self) -> None:
        """Pause from now on, if it is wanted."""
        if not self._on and self._wanted():
            self._on = True
            self._loop.call_soon(self._turn, 1)

    def _turn(self, number: int) -> None:
        if number < TURNS:
            self._loop.call_soon(self._turn, number + 1)
        elif self._wanted():
            # Not the loop's own waiting, which ends with whatever comes.
            sleep(PAUSE_SECONDS)
            self._loop.call_soon(self._turn, 1)
        else:
            self._on = False
