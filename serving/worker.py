"""A worker: the program of one of several processes on a port. What it hears and says, ``workers`` tells."""

import asyncio
import itertools
import json
import logging
import signal
import sys
from typing import Any

from cognate.errors import CognateError, UnavailableError
from serving import event_loop
from serving.index_changes import Change, OtherWorkers, ServedByAll, error_of, line, said_of
from serving.indexes import Prepared
from serving.logs import logging_to_standard_error
from serving.server import Server, serve
from serving.settings import Settings

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Of what is said between parent and worker."""

_log = logging.getLogger(__name__)


def work() -> None:
    """Be a worker: the whole program of its process."""
    try:
        event_loop.run(_work())
    except CognateError as error:
        _say({"error": said_of(error)})
        raise SystemExit(1) from None


async def _work() -> None:
    told = asyncio.StreamReader(MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(told), sys.stdin.buffer
    )
    first = json.loads(await told.readline())
    settings = Settings.load(**first["settings"])
    served = first["served"]
    if served is not None:
        served = {name: ServedByAll.parse(said) for name, said in served.items()}
    parent = _Parent()
    tasks = []

    def on_ready(server: Server) -> None:
        tasks.append(asyncio.create_task(parent.obey(server, told)))
        _say({"ready": True, "metrics_port": server.metrics_port, "served": _served(server)})

    with logging_to_standard_error(settings.log_format, settings.log_level):
        await serve(Server(settings, OtherWorkers(parent.ask, served)), on_ready)


class _Parent:
    """The parent, as a worker has it: who is asked for changes, and gives orders."""

    def __init__(self) -> None:
        self._prepared: Prepared | None = None
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        self._gone = False

    async def ask(self, change: Change) -> None:
        """Ask for a change in all workers, and wait until it is made.

        Raises:
            CognateError: It is not, in any.
        """
        if self._gone:
            raise _stopping()
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            _say({"ask": number, **change.said()})
            await answer
        finally:
            del self._asked[number]

    async def obey(self, server: Server, told: asyncio.StreamReader) -> None:
        """Do what the parent says, and stop where it says no more."""
        orders = set()
        async for said in told:
            # Not one after another: to open an index takes its time.
            order = asyncio.create_task(self._do(server, json.loads(said)))
            orders.add(order)
            order.add_done_callback(orders.discard)
        self._gone = True
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(_stopping())
        signal.raise_signal(signal.SIGTERM)

    async def _do(self, server: Server, said: dict[str, Any]) -> None:
        order = said["order"]
        if order == "answer":
            self._answer(said["ask"], said["error"])
        elif order == "reload":
            server.reload()
        elif order == "tell":
            await server.tell_of_workers(all_up=said["all_up"])
        else:
            try:
                result = await self._change(server, order, said)
            except CognateError as why:
                _say({"done": order, "error": said_of(why)})
            except Exception as why:
                _log.exception("%s failed", order)
                _say({"done": order, "error": said_of(CognateError(f"{type(why).__name__}: {why}"))})
            else:
                _say({"done": order, "error": None, **result})

    async def _change(self, server: Server, order: str, said: dict[str, Any]) -> dict[str, Any]:
        """A part of a change; the parent makes one after another."""
        indexes = server.indexes
        if order == "prepare":
            change = Change.parse(said)
            assert change.location is not None  # noqa: S101
            self._prepared = await indexes.prepare(change.name, change.location, change.expected)
            return {"version": self._prepared.version, "served": ServedByAll.of(self._prepared).said()}
        if order == "unload":
            # One that was started when it was gone from the disk may not have it.
            if said["name"] in indexes.names():
                await indexes.unload(said["name"])
            return {}
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            (indexes.switch if order == "switch" else indexes.drop)(prepared)
        return {}

    def _answer(self, number: int, error: list[str] | None) -> None:
        # None where its caller has gone.
        answer = self._asked.get(number)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error_of(error))


def _served(server: Server) -> dict[str, Any]:
    indexes = server.indexes
    return {
        name: ServedByAll(indexes.served(name).source, indexes.served(name).previous).said()
        for name in indexes.names()
    }


def _stopping() -> UnavailableError:
    return UnavailableError("the server is stopping, and its indexes are changed no more")


def _say(what: dict[str, Any]) -> None:
    sys.stdout.buffer.write(line(what))
    sys.stdout.buffer.flush()
