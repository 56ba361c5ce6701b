"""Several processes on one port, each a whole server, and the parent that keeps them running.

The kernel hands each connection to one of the processes that listen (SO_REUSEPORT). The parent takes none.
It talks to a worker through the worker's standard input, an object of JSON a line: first the settings, then
orders. Where the input ends, the worker finishes what is under way and ends: so a worker outlives neither the
parent's word nor the parent. A worker's first line of output says that it takes calls, or why it cannot; then
it says what it has done, and asks for changes of the indexes.

The indexes of all workers are changed together: each opens and checks the new version beside the old, and
only when all have do they switch. While a worker is being started, no change is made; it begins with what
the others serve.
"""

import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Coroutine
from typing import Any

from prometheus_client import CollectorRegistry

from cognate.errors import ArtifactError, CognateError, UnavailableError
from cognate.processors import available_cores
from cognate.searchable import Location
from serving.index_changes import Change, ServedByAll, error_of, line, said_of
from serving.index_watch import IndexWatch
from serving.logs import logging_to_standard_error
from serving.metrics_port import MetricsPort
from serving.server import address_of, listen_alone, why_not_listening
from serving.settings import Settings
from serving.worker import MAX_LINE_BYTES
from serving.worker_metrics import WorkerMetrics

MAX_STARTS = 5
"""How often in a row a worker may die before it takes calls."""

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds before a worker is started again: doubled each time, unless it ran for ``LONG_LIFE``."""

LONG_LIFE = 60.0

KILLED_AFTER = 5.0
"""Seconds that a worker may take to end, beyond the grace for its calls."""

MAX_CHANGES = 3
"""How often a change is tried where a worker dies over it."""

_log = logging.getLogger(__name__)


OnReady = Callable[[str, int | None, int | None], None]
"""Called with HOST:PORT and the ports of administration and metrics, None where there is none, once all
workers take calls."""


def run_workers(settings: Settings, on_ready: OnReady | None = None) -> None:
    """Serve with ``settings.workers`` processes until SIGTERM or SIGINT, then drain them all.

    In the main thread. SIGHUP reloads in every worker; a second SIGTERM or SIGINT ends at once. The metrics
    of all are published on one port.

    Args:
        settings: What to serve.
        on_ready: Called once all workers take calls.

    Raises:
        CognateError: The port cannot be listened on, or a worker cannot start.
    """
    with (
        logging_to_standard_error(settings.log_format, settings.log_level),
        contextlib.ExitStack() as stack,
    ):
        held = stack.enter_context(_hold_port(settings.host, settings.port))
        ports = {"port": held.getsockname()[1]}
        if settings.admin_port is not None:
            held = stack.enter_context(_hold_port(settings.host, settings.admin_port, "--admin-port"))
            ports["admin_port"] = held.getsockname()[1]
        asyncio.run(_Parent(settings.model_copy(update=ports)).run(on_ready))
        _log.info("stopped")


class _WorkerEndedError(Exception):
    """A worker ended before it had done what it was told."""


class _Worker:
    """A worker's process, whether it takes calls, and where it tells its metrics."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.ready = False
        self.metrics_port: int | None = None
        self._done: asyncio.Future[dict[str, Any]] | None = None

    def tell(self, order: str, **what: object) -> None:
        if self.process.stdin and not self.process.stdin.is_closing():
            self.process.stdin.write(line({"order": order, **what}))

    async def do(self, order: str, **what: object) -> dict[str, Any]:
        """Tell it to do a thing, one at a time, and wait until it has.

        Raises:
            CognateError: It cannot.
            _WorkerEndedError: It ended.
        """
        if not self.ready:
            raise _WorkerEndedError
        self._done = asyncio.get_running_loop().create_future()
        self.tell(order, **what)
        done = await self._done
        if done["error"] is not None:
            raise error_of(done["error"])
        return done

    async def hear(self) -> dict[str, Any] | None:
        """The next thing that it says; None where it has ended."""
        assert self.process.stdout  # noqa: S101
        async for said in self.process.stdout:
            # Else a library prints, or it ended in the middle.
            with contextlib.suppress(ValueError):
                message = json.loads(said)
                if isinstance(message, dict):
                    return message
        return None

    async def listen(self, on_ask: Callable[[dict[str, Any]], None]) -> None:
        """Hear what it says, until it ends."""
        while (message := await self.hear()) is not None:
            if "ask" in message:
                on_ask(message)
            elif self._done and not self._done.done():
                self._done.set_result(message)
        self.ready = False
        if self._done and not self._done.done():
            self._done.set_exception(_WorkerEndedError())

    def stop(self) -> None:
        """Tell it to finish and end; one that takes no calls yet has nothing to finish."""
        if self.process.stdin:
            self.process.stdin.close()
        if not self.ready and self.process.returncode is None:
            self.process.terminate()

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()


class _Parent:
    """Starts the workers, and starts them again."""

    def __init__(self, settings: Settings) -> None:
        cores = max(1, available_cores() // settings.workers)
        self._metrics_host, self._metrics_port = settings.metrics_host, settings.metrics_port
        own_metrics = None if settings.metrics_port is None else 0
        self._settings = settings.model_copy(
            update={
                "threads": settings.threads or cores,
                "metrics_host": "127.0.0.1",
                "metrics_port": own_metrics,
                "config": None,
            }
        )
        self._workers: dict[int, _Worker] = {}
        self._told_to_stop = asyncio.Event()
        self._all_up = asyncio.Event()
        # Once all were up, the settings are known to be good.
        self._were_all_up = False
        # Held while a change is made, and while a process is made that begins with what was before or after.
        self._changing = asyncio.Condition()
        self._served: dict[str, ServedByAll] | None = None
        self._answers: set[asyncio.Task[None]] = set()

    async def run(self, on_ready: OnReady | None) -> None:
        with contextlib.ExitStack() as stack:
            if self._metrics_port is not None:
                registry = CollectorRegistry()
                registry.register(WorkerMetrics(self._metrics_ports))
                published = MetricsPort(registry, self._metrics_host, self._metrics_port)
                stack.callback(published.close)
                self._metrics_port = published.port
            await self._run(on_ready)

    async def _run(self, on_ready: OnReady | None) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        keepers = [asyncio.create_task(self._keep(number)) for number in range(1, self._settings.workers + 1)]
        told_to_stop = asyncio.create_task(self._told_to_stop.wait())
        announced = asyncio.create_task(self._announce(on_ready))
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait([told_to_stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
            for keeper in keepers:
                if keeper.done():
                    # It ends by itself only when it gives up.
                    keeper.result()
        finally:
            tasks = (told_to_stop, announced, watching, *self._answers, *keepers)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._end()

    def _stop(self) -> None:
        if self._told_to_stop.is_set():
            for worker in self._workers.values():
                worker.kill()
        self._told_to_stop.set()

    def _reload(self) -> None:
        # One that is still starting reads the line once it takes calls.
        for worker in self._workers.values():
            worker.tell("reload")
        self._begin(self._reload_indexes())

    async def _reload_indexes(self) -> None:
        """Load again each index whose folder now holds another version; what is refused is logged."""
        await self._all_up.wait()
        for name, served in list((self._served or {}).items()):
            try:
                await self._change(Change(name, served.source), reload=True)
            except CognateError as why:
                _log.warning("index %s stays as it is: %s", name, why)

    async def _watch(self) -> None:
        """Watch the folder of indexes for all workers, which have looked into it once at their start."""
        settings = self._settings
        await self._all_up.wait()
        if settings.watch is not None:
            watch = IndexWatch(settings.watch, self)
            await watch.poll()
            await watch.run(settings.watch_seconds)

    async def load(self, name: str, location: Location) -> None:
        """Let the version at a location take the place of the present one, in all workers.

        Raises:
            CognateError: It is missing, damaged, too new or of another model. The present one stays, in all.
        """
        await self._change(Change(name, location))

    async def _change(self, change: Change, *, reload: bool = False) -> None:
        """Change an index in all workers, or in none.

        Args:
            change: The change.
            reload: Whether it loads again what is served: not where that is from elsewhere by then.
        """
        for _ in range(MAX_CHANGES):
            # The lock is given up while it waits for a worker to be started.
            async with self._changing:
                await self._changing.wait_for(self._are_all_ready)
                if reload:
                    served = (self._served or {}).get(change.name)
                    # It was unloaded, or rolled back from, meanwhile.
                    if served is None or served.source != change.location:
                        return
                with contextlib.suppress(_WorkerEndedError):
                    await self._change_all(change)
                    return
        raise UnavailableError(
            f"a worker ended {MAX_CHANGES} times while the index {change.name} was changed; see the log"
        )

    async def _change_all(self, change: Change) -> None:
        assert self._served is not None  # noqa: S101
        if change.location is None:
            self._served.pop(change.name, None)
            await self._in_all("unload", name=change.name)
            return
        done = await self._in_all("prepare", **change.said())
        failed = [why for why in done if isinstance(why, BaseException)]
        prepared = [one for one in done if not isinstance(one, BaseException)]
        if not failed and len({one["version"] for one in prepared}) > 1:
            failed = [ArtifactError(f"{change.location} was written anew while it was opened; load it again")]
        if failed:
            await self._in_all("drop")
            raise failed[0]
        # From now on it holds: a worker that ends over the switch begins with it.
        self._served[change.name] = ServedByAll.parse(prepared[0]["served"])
        await self._in_all("switch")

    async def _in_all(self, order: str, **what: object) -> list[dict[str, Any] | BaseException]:
        """What all workers say to an order, or how each failed."""
        doing = (worker.do(order, **what) for worker in self._workers.values())
        return await asyncio.gather(*doing, return_exceptions=True)

    def _heard(self, worker: _Worker, asked: dict[str, Any]) -> None:
        """A worker asks for a change."""

        async def answer() -> None:
            error = None
            try:
                await self._change(Change.parse(asked))
            except CognateError as why:
                error = said_of(why)
            worker.tell("answer", ask=asked["ask"], error=error)

        self._begin(answer())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def _are_all_ready(self) -> bool:
        return len(self._workers) == self._settings.workers and all(
            worker.ready for worker in self._workers.values()
        )

    def _metrics_ports(self) -> dict[int, int | None]:
        """Where each worker tells its metrics, None where it takes no calls; for any thread."""
        return {
            number: worker.metrics_port if worker.ready else None
            for number, worker in list(self._workers.items())
        }

    async def _announce(self, on_ready: OnReady | None) -> None:
        await self._all_up.wait()
        if on_ready is not None:
            settings = self._settings
            on_ready(address_of(settings.host, settings.port), settings.admin_port, self._metrics_port)

    async def _end(self) -> None:
        """End the workers, all at once."""
        for worker in self._workers.values():
            worker.stop()
        endings = [worker.process.wait() for worker in self._workers.values()]
        try:
            await asyncio.wait_for(asyncio.gather(*endings), self._settings.grace_seconds + KILLED_AFTER)
        except TimeoutError:
            for worker in self._workers.values():
                worker.kill()
            await asyncio.gather(*(worker.process.wait() for worker in self._workers.values()))

    async def _keep(self, number: int) -> None:
        """Keep a worker running; raises where it will not start."""
        loop = asyncio.get_running_loop()
        failures = short_lives = 0
        while True:
            began = loop.time()
            async with self._changing:
                worker = self._workers[number] = _Worker(await self._start())
            why = await self._first_word(worker)
            if why is None:
                failures = 0
                worker.ready = True
                if self._were_all_up:
                    # An index may have been built again in its place since the others opened it.
                    self._begin(self._reload_indexes())
                await self._tell_who_is_up()
                await worker.listen(functools.partial(self._heard, worker))
            code = await worker.process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            if why is None:
                _log.warning("worker %d (pid %d) ended with %s", number, worker.process.pid, how)
                await self._tell_who_is_up()
            else:
                failures += 1
                _log.warning("worker %d (pid %d) ended at its start with %s", number, worker.process.pid, how)
                if why and not self._were_all_up:
                    raise CognateError(why)
                if failures == MAX_STARTS:
                    raise CognateError(
                        f"worker {number} ended at its start {failures} times in a row, last with {how}"
                        f"{f': {why}' if why else ''}; its last lines above may say why"
                    )
            short_lives = 0 if loop.time() - began > LONG_LIFE else short_lives + 1
            await asyncio.sleep(min(FIRST_PAUSE * 2**short_lives, LONGEST_PAUSE))

    async def _start(self) -> Process:
        # What COGNATE_ variables say is in the settings already.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COGNATE_")}
        environment.setdefault("OMP_NUM_THREADS", str(self._settings.threads))
        # What the parent imports from, and not from wherever it was started.
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-c",
            "from serving.worker import work; work()",
            stdin=PIPE,
            stdout=PIPE,
            limit=MAX_LINE_BYTES,
            env=environment,
            # Ctrl-C at the terminal is the parent's to hear.
            start_new_session=True,
        )
        assert process.stdin  # noqa: S101
        served = None
        if self._served is not None:
            served = {name: one.said() for name, one in self._served.items()}
        process.stdin.write(line({"settings": self._settings.said(), "served": served}))
        return process

    async def _first_word(self, worker: _Worker) -> str | None:
        """Wait for what a worker says of its start: None is that it takes calls, else why not, if it said."""
        word = await worker.hear()
        if word is None:
            return ""
        if "error" in word:
            return str(error_of(word["error"]))
        worker.metrics_port = word["metrics_port"]
        if not self._were_all_up:
            served = {name: ServedByAll.parse(one) for name, one in word["served"].items()}
            self._served = {**served, **(self._served or {})}
        return None

    async def _tell_who_is_up(self) -> None:
        all_up = self._are_all_ready()
        if all_up:
            self._were_all_up = True
            self._all_up.set()
        for worker in self._workers.values():
            worker.tell("tell", all_up=all_up)
        async with self._changing:
            self._changing.notify_all()


def _hold_port(host: str, port: int, flag: str = "--port") -> socket.socket:
    """Make sure that nobody else listens on a port, and keep it for the workers, without listening."""
    try:
        family, address = listen_alone(host, port)
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except OSError as error:
        raise CognateError(why_not_listening(host, port, error, flag)) from None
    return held
