"""Indexes that another machine keeps: what becomes of a call where that does not answer."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cognate.errors import CognateError, UnavailableError, UnsupportedError
from serving.refusal import INDEX_RETRY_SECONDS, Refusal, index_failed, index_unavailable, not_supported

_log = logging.getLogger(__name__)


class RemoteFailures:
    """Turns failures into refusals, and refuses at once for a moment after one that took its time.

    Else each call would wait as long as the first, and the threads that wait would be all there are.
    """

    def __init__(self) -> None:
        self._down: dict[str, float] = {}

    def refuse_if_down(self, name: str) -> None:
        """Refuse a call on an index that has just not answered. From any thread.

        Raises:
            Refusal: It is so.
        """
        if time.monotonic() < self._down.get(name, 0.0):
            raise index_unavailable(name)

    @contextmanager
    def refusing(self, name: str) -> Iterator[None]:
        """Around what asks an index that another machine keeps.

        The sentence of a failure, which has that machine's address, is for the log, not for callers.

        Raises:
            Refusal: It failed.
        """
        try:
            yield
        except Refusal:
            raise
        except UnsupportedError as why:
            raise not_supported(why) from None
        except UnavailableError as why:
            if name not in self._down:
                _log.warning("index %s: %s", name, why)
            self._down[name] = time.monotonic() + INDEX_RETRY_SECONDS
            raise index_unavailable(name) from None
        except CognateError as why:
            _log.warning("index %s: %s", name, why)
            raise index_failed(name) from None
        if self._down.pop(name, None) is not None:
            _log.warning("index %s answers again", name)
