"""The event loop that a server runs in."""

import asyncio
from collections.abc import Coroutine
from typing import Any

try:
    import uvloop
except ImportError:  # not for Windows
    _new_event_loop = asyncio.new_event_loop
else:
    _new_event_loop = uvloop.new_event_loop


def run(main: Coroutine[Any, Any, None]) -> None:
    """As ``asyncio.run``, by uvloop where it is there.

    Under more load than a server can take, what a turn of the loop costs decides how many calls are answered
    (benchmarks/README.md).
    """
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        runner.run(main)
