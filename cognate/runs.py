"""Training runs: a folder each that says what was asked for, how far it has come, and what came of it.

A run's folder holds ``config.json`` (what was asked for), ``state.json``, ``log``, ``metrics.jsonl`` (a line
for each step and each evaluation, as they come), ``examples.jsonl`` (hits of a few queries), ``checkpoints``
(what resuming needs) and, at the end, ``checkpoint`` and ``report.html``.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pydantic

from cognate.errors import CognateError

RUNS_DIR = "COGNATE_RUNS"
"""The environment variable that says where runs live; without it, ``runs``."""

CONFIG = "config.json"
STATE = "state.json"
LOG = "log"
METRICS = "metrics.jsonl"
EXAMPLES = "examples.jsonl"
CHECKPOINTS = "checkpoints"
CHECKPOINT = "checkpoint"
EVALUATIONS = "evaluations"
REPORT = "report.html"
TENSORBOARD = "tensorboard"
STOP = "stop"

POLL_SECONDS = 0.2
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

State = Literal["created", "running", "finished", "failed", "stopped"]


class RunStatus(pydantic.BaseModel):
    """Where a run stands.

    Attributes:
        state: "created", "running", "finished", "failed" or "stopped".
        created_at: In UTC.
        started_at: When it was last started, in UTC.
        ended_at: When it ended, in UTC.
        error: Why it failed, or was stopped; one sentence.
        pid: The process that runs it.
        process_started: When that process began, seconds since 1970: another process may get its pid later.
        host: The machine of that process.
    """

    state: State
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: str | None = None
    pid: int | None = None
    process_started: float | None = None
    host: str | None = None


class RunStoppedError(CognateError):
    """A run that somebody asked to stop."""


class RunFolder:
    """A run, as its folder tells it.

    Attributes:
        folder: The folder.
        name: Its name.
    """

    def __init__(self, folder: Path) -> None:
        """Open a run's folder; ``get_run`` checks that there is one."""
        self.folder = folder
        self.name = folder.name

    def status(self) -> RunStatus:
        """Where the run stands. One whose process is gone without a word is "failed".

        Raises:
            CognateError: Its state cannot be read.
        """
        status = self._written_status()
        if _has_process(status) and not _alive(status):
            return status.model_copy(
                update={
                    "state": "failed",
                    "error": f"its process, {status.pid}, ended without a word: it was killed, ran out of "
                    "memory, or the machine went down",
                }
            )
        return status

    def config(self) -> dict[str, Any]:
        """What was asked for.

        Raises:
            CognateError: It cannot be read.
        """
        return _read_object(self.folder / CONFIG)

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the checkpoint that the run made; None before it has."""
        made = Path(self.config().get("out") or self.folder / CHECKPOINT)
        return made if self.status().state == "finished" and made.is_dir() else None

    def evaluation_file(self, epoch: int) -> Path:
        """Where what was found for each query after an epoch lies; 0 is before training."""
        return self.folder / EVALUATIONS / f"epoch-{epoch}.safetensors"

    def logs(self) -> str:
        """All that the run has logged."""
        path = self.folder / LOG
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def stream_logs(self) -> Iterator[str]:
        """The lines of the log, from the first, as they come, until the run ends or is not running."""
        path = self.folder / LOG
        path.touch()
        with path.open(encoding="utf-8", errors="replace") as file:
            pending = ""
            while True:
                # Asked before reading, so that what is logged last is read.
                running = self.status().state in ("created", "running")
                while text := file.readline():
                    pending += text
                    if pending.endswith("\n"):
                        yield pending.rstrip("\n")
                        pending = ""
                if not running:
                    if pending:
                        yield pending
                    return
                time.sleep(POLL_SECONDS)

    def metrics(self) -> list[dict[str, Any]]:
        """What has been measured: a "kind" of "step" (step, epoch, loss) or "evaluation" (epoch, metrics)."""
        return list(_read_lines(self.folder / METRICS))

    def example_results(self) -> list[dict[str, Any]]:
        """A few queries, each with its hits before training and after the last evaluated epoch."""
        by_query: dict[int, dict[str, Any]] = {}
        for line in _read_lines(self.folder / EXAMPLES):
            example = by_query.setdefault(
                line["row"], {"query": line["query"], "label": line["label"], "before": line["hits"]}
            )
            example["after"] = line["hits"]
        return list(by_query.values())

    def stop(self) -> None:
        """Ask the run to stop after the step that it is at, and wait until it has.

        Raises:
            CognateError: It is not running, and no process is about to.
        """
        status = self.status()
        if not _has_process(status):
            raise CognateError(f"run {self.name} is not running: it is {status.state}")
        (self.folder / STOP).touch()
        while _has_process(self.status()):
            time.sleep(POLL_SECONDS)

    def stop_asked(self) -> bool:
        """Whether somebody asked the run to stop."""
        return (self.folder / STOP).exists()

    # What follows is for the process that runs it, or starts the one that does.

    def start(self, start: Callable[[], int]) -> None:
        """Start the process that runs it; ``start`` does, and gives its pid. It may die before it runs it."""
        with self._locked():
            (self.folder / STOP).unlink(missing_ok=True)
            pid = start()
            self._update(
                state="created",
                ended_at=None,
                error=None,
                pid=pid,
                process_started=_process_started(pid),
                host=socket.gethostname(),
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / CONFIG).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Be the run's process for the length of a block, whose end decides how the run ended.

        Raises:
            CognateError: Another process runs it.
        """
        with self._locked():
            state = self.status().state
            if state == "running":
                raise CognateError(
                    f"run {self.name} is running, in process {self._written_status().pid}; follow it with "
                    f"cognate runs {self.name} --follow"
                )
            # In a created run, it is this attempt that was asked to stop, while its process was loading.
            if state != "created":
                (self.folder / STOP).unlink(missing_ok=True)
            self._update(
                state="running",
                started_at=_now(),
                ended_at=None,
                error=None,
                pid=os.getpid(),
                process_started=_process_started(os.getpid()),
                host=socket.gethostname(),
            )
        try:
            yield
        except RunStoppedError as stop:
            self._ended("stopped", str(stop))
            raise
        except (KeyboardInterrupt, SystemExit):
            self._ended("stopped", "it was interrupted")
            raise
        except BaseException as error:
            self._ended("failed", str(error) or type(error).__name__)
            raise
        self._ended("finished", None)

    def add_metrics(self, line: Mapping[str, object]) -> None:
        """Append a line to the metrics."""
        _append(self.folder / METRICS, [line])

    def add_examples(self, lines: list[dict[str, object]]) -> None:
        """Append lines to the examples."""
        _append(self.folder / EXAMPLES, lines)

    def write_report(self, page: str) -> Path:
        """Put a page in the report's place.

        Raises:
            CognateError: It cannot be written.
        """
        try:
            _write_whole(self.folder / REPORT, page)
        except OSError as error:
            raise CognateError(f"{self.folder / REPORT} cannot be written: {error.strerror}") from error
        return self.folder / REPORT

    def keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Drop lines of the metrics and the examples: those that a resumed run will measure again."""
        for path in (self.folder / METRICS, self.folder / EXAMPLES):
            kept = [line for line in _read_lines(path) if wanted(line)]
            _write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def _written_status(self) -> RunStatus:
        try:
            return RunStatus.model_validate(_read_object(self.folder / STATE))
        except pydantic.ValidationError:
            raise CognateError(f"{self.folder / STATE} is damaged") from None

    def _update(self, **fields: object) -> None:
        status = self._written_status().model_copy(update=fields)
        _write_whole(self.folder / STATE, status.model_dump_json(indent=2) + "\n")

    def _ended(self, state: State, error: str | None) -> None:
        with contextlib.suppress(OSError):  # A full disk must not hide why the run failed.
            self._update(state=state, ended_at=_now(), error=error)


def runs_dir(given: str | Path | None = None) -> Path:
    """Where runs live: as given, else as COGNATE_RUNS says, else ``runs``."""
    return Path(given or os.environ.get(RUNS_DIR) or "runs")


def get_run(name: str, runs_in: str | Path | None = None) -> RunFolder:
    """Open a run by its name.

    Args:
        name: The run's.
        runs_in: Where runs live; ``runs_dir`` says what holds without it.

    Raises:
        CognateError: There is no such run.
    """
    _check_name(name)
    folder = runs_dir(runs_in) / name
    if not _is_run(folder):
        known = ", ".join(run.name for run in list_runs(runs_in)) or "none"
        raise CognateError(f"there is no run {name!r} in {folder.parent}; those that exist: {known}")
    return RunFolder(folder)


def list_runs(runs_in: str | Path | None = None) -> list[RunFolder]:
    """All runs, the one created last first."""
    folder = runs_dir(runs_in)
    runs = [RunFolder(path) for path in folder.iterdir() if _is_run(path)] if folder.is_dir() else []
    return sorted(runs, key=lambda run: (run.status().created_at, run.name), reverse=True)


def check_new_run(name: str, runs_in: str | Path | None = None, *, force: bool = False) -> None:
    """Refuse a name that a run cannot have.

    Raises:
        CognateError: It is no name, or there is a run of that name and ``force`` is off or it is running.
    """
    _check_name(name)
    folder = runs_dir(runs_in) / name
    if not folder.exists():
        return
    if not _is_run(folder):
        raise CognateError(f"{folder} exists and is no run; give another name")
    state = RunFolder(folder).status().state
    if state == "running":
        raise CognateError(
            f"run {name} is running; give another name, or stop it: cognate runs {name} --stop"
        )
    if not force:
        taken = f"there is a run {name}, {state}; give another name"
        if state == "finished":
            raise CognateError(f"{taken}, or --force to replace it")
        raise CognateError(f"{taken}, --force to replace it, or go on with it: cognate train --resume {name}")


def create_run(
    name: str, config: Mapping[str, Any], runs_in: str | Path | None = None, *, force: bool = False
) -> RunFolder:
    """Make a run's folder, in the state "created". Of two that do at once, one is refused.

    Args:
        name: Letters, digits, ``.``, ``_`` and ``-``.
        config: What is asked for; JSON.
        runs_in: Where runs live.
        force: Whether a run of that name that is not running is replaced.

    Raises:
        CognateError: As ``check_new_run``, or the folder cannot be written.
    """
    check_new_run(name, runs_in, force=force)
    folder = runs_dir(runs_in) / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder.parent))
        try:
            made.chmod(0o755)
            (made / CHECKPOINTS).mkdir()
            (made / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            status = RunStatus(state="created", created_at=_now())
            (made / STATE).write_text(status.model_dump_json(indent=2) + "\n", encoding="utf-8")
            old = made.with_name(f"{made.name}.old")
            if force and folder.exists():
                folder.rename(old)
            try:
                made.rename(folder)
            except OSError:
                check_new_run(name, runs_in)
                if old.exists():
                    old.rename(folder)
                raise
            # The new run is there, whether or not the old one can be deleted.
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise CognateError(f"{folder} cannot be written: {error.strerror}") from error
    return RunFolder(folder)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise CognateError(
            f"{name!r} cannot be the name of a run; use up to 100 letters, digits, '.', '_' and '-', the "
            "first a letter or a digit"
        )


def _is_run(folder: Path) -> bool:
    return (
        NAME.fullmatch(folder.name) is not None and (folder / STATE).is_file() and (folder / CONFIG).is_file()
    )


def _has_process(status: RunStatus) -> bool:
    """Whether a process runs it, or was started to, as far as is written."""
    return status.state == "running" or (status.state == "created" and status.pid is not None)


def _alive(status: RunStatus) -> bool:
    """Whether the process of a run is there; on another machine nobody can tell, so what is written holds."""
    if status.host != socket.gethostname() or status.pid is None:
        return True
    started = _process_started(status.pid)
    return started is not None and abs(started - (status.process_started or 0)) < 1.0


def _process_started(pid: int) -> float | None:
    # Imported here: installed with what trains, and only its runs are asked about.
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CognateError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CognateError(f"{path} is not a JSON object")
    return value


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            # The last one may be cut: its process was killed, or is writing it now.
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def _append(path: Path, lines: list[Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise CognateError(f"{path} cannot be written: {error.strerror}") from error


def _write_whole(path: Path, text: str) -> None:
    """Replace a file at once, so that a reader sees the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
