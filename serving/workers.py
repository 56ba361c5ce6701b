"""Several processes on one port, each a whole server, and the parent that keeps them running.

The kernel hands each connection to one of the processes that listen (SO_REUSEPORT). The parent takes none.
It talks to a worker through the worker's standard input, a line at a time: first the settings as JSON, then
"reload", or whether all workers are up. Where the input ends, the worker finishes what is under way and ends:
so a worker outlives neither the parent's word nor the parent. A worker's first line of output says that it
takes calls, or why it cannot.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from cognate.errors import CognateError
from cognate.processors import available_cores
from serving.logs import logging_to_standard_error
from serving.metrics_port import MetricsPort
from serving.server import Server, address_of, listen_alone, serve, why_not_listening
from serving.settings import Settings
from serving.worker_metrics import WorkerMetrics

MAX_STARTS = 5
"""How often in a row a worker may die before it takes calls."""

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds before a worker is started again: doubled each time, unless it ran for ``LONG_LIFE``."""

LONG_LIFE = 60.0

KILLED_AFTER = 5.0
"""Seconds that a worker may take to end, beyond the grace for its calls."""

_RELOAD, _ALL_UP, _NOT_ALL_UP = b"reload\n", b"all up\n", b"not all up\n"

_log = logging.getLogger(__name__)


OnReady = Callable[[str, int | None], None]
"""Called with HOST:PORT and the metrics port, None where there is none, once all workers take calls."""


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
        _hold_port(settings.host, settings.port) as held,
    ):
        asyncio.run(_Parent(settings, held.getsockname()[1]).run(on_ready))
        _log.info("stopped")


def work() -> None:
    """Be a worker: the whole program of its process."""
    try:
        asyncio.run(_work())
    except CognateError as error:
        _say({"error": str(error)})
        raise SystemExit(1) from None


class _Worker:
    """A worker's process, whether it takes calls, and where it tells its metrics."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.ready = False
        self.metrics_port: int | None = None

    def tell(self, line: bytes) -> None:
        if self.process.stdin and not self.process.stdin.is_closing():
            self.process.stdin.write(line)

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

    def __init__(self, settings: Settings, port: int) -> None:
        cores = max(1, available_cores() // settings.workers)
        self._metrics_host, self._metrics_port = settings.metrics_host, settings.metrics_port
        own_metrics = None if settings.metrics_port is None else 0
        self._settings = settings.model_copy(
            update={
                "port": port,
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
        try:
            await asyncio.wait([told_to_stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
            for keeper in keepers:
                if keeper.done():
                    # It ends by itself only when it gives up.
                    keeper.result()
        finally:
            for task in (told_to_stop, announced, *keepers):
                task.cancel()
            await asyncio.gather(told_to_stop, announced, *keepers, return_exceptions=True)
            await self._end()

    def _stop(self) -> None:
        if self._told_to_stop.is_set():
            for worker in self._workers.values():
                worker.kill()
        self._told_to_stop.set()

    def _reload(self) -> None:
        # One that is still starting reads the line once it takes calls.
        for worker in self._workers.values():
            worker.tell(_RELOAD)

    def _metrics_ports(self) -> dict[int, int | None]:
        """Where each worker tells its metrics, None where it takes no calls; for any thread."""
        return {
            number: worker.metrics_port if worker.ready else None
            for number, worker in list(self._workers.items())
        }

    async def _announce(self, on_ready: OnReady | None) -> None:
        await self._all_up.wait()
        if on_ready is not None:
            on_ready(address_of(self._settings.host, self._settings.port), self._metrics_port)

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
            worker = self._workers[number] = _Worker(await self._start())
            why = await self._first_word(worker)
            if why is None:
                failures = 0
                worker.ready = True
                self._tell_who_is_up()
            code = await worker.process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            if why is None:
                worker.ready = False
                self._tell_who_is_up()
                _log.warning("worker %d (pid %d) ended with %s", number, worker.process.pid, how)
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
            "from serving.workers import work; work()",
            stdin=PIPE,
            stdout=PIPE,
            env=environment,
            # Ctrl-C at the terminal is the parent's to hear.
            start_new_session=True,
        )
        assert process.stdin  # noqa: S101
        process.stdin.write(self._settings.model_dump_json().encode() + b"\n")
        return process

    async def _first_word(self, worker: _Worker) -> str | None:
        """Wait for what a worker says of its start: None is that it takes calls, else why not, if it said."""
        assert worker.process.stdout  # noqa: S101
        line = await worker.process.stdout.readline()
        try:
            said = json.loads(line)
        except ValueError:
            return ""
        if not said.get("ready"):
            return str(said.get("error", ""))
        worker.metrics_port = said["metrics_port"]
        return None

    def _tell_who_is_up(self) -> None:
        all_up = len(self._workers) == self._settings.workers and all(
            worker.ready for worker in self._workers.values()
        )
        if all_up:
            self._were_all_up = True
            self._all_up.set()
        for worker in self._workers.values():
            worker.tell(_ALL_UP if all_up else _NOT_ALL_UP)


async def _work() -> None:
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(told), sys.stdin.buffer
    )
    settings = Settings.load(**json.loads(await told.readline()))
    tasks = []

    def on_ready(server: Server) -> None:
        tasks.append(asyncio.create_task(_obey(server, told)))
        _say({"ready": True, "metrics_port": server.metrics_port})

    with logging_to_standard_error(settings.log_format, settings.log_level):
        await serve(Server(settings, shares_port=True), on_ready)


async def _obey(server: Server, told: asyncio.StreamReader) -> None:
    """Do what the parent says, and stop where it says no more."""
    async for line in told:
        if line == _RELOAD:
            await server.reload_all()
        else:
            await server.tell_of_workers(all_up=line == _ALL_UP)
    signal.raise_signal(signal.SIGTERM)


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _hold_port(host: str, port: int) -> socket.socket:
    """Make sure that nobody else listens on a port, and keep it for the workers, without listening."""
    try:
        family, address = listen_alone(host, port)
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except OSError:
        raise CognateError(why_not_listening(host, port)) from None
    return held
