"""What commands write: results on standard output, the rest on standard error."""

import contextlib
import datetime
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cognate.errors import CognateError

# A pipe has no width: tables that go into one are not folded to 80 columns.
out = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

LINE_EVERY_S = 30
"""How often a job without a terminal says how far it is."""


def fail(sentence: str) -> NoReturn:
    """Say what went wrong in one line, and exit with 1."""
    err.print(f"error: {sentence}", style="red")
    raise SystemExit(1)


def note(sentence: str) -> None:
    """Say something beside the result."""
    err.print(sentence, style="dim")


def print_json(document: object) -> None:
    """Print one JSON document, and nothing else."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")


def progress_bar(unit: str) -> Progress:
    """A progress bar on standard error, with the rate; silent where that is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]}} {unit}/s" if unit else "{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


class JobProgress:
    """How far a long job is: a bar on a terminal, elsewhere a line every half minute."""

    def __init__(self, bar: Progress, unit: str) -> None:
        self._bar = bar
        self._unit = unit
        self._task = bar.add_task("encoding", total=None, rate="")
        self.begin(0, None)

    def begin(self, done: int, expected: int | None) -> None:
        """Say where the job starts, and how much there is, where that is known."""
        self._started = self._told = time.monotonic()
        self._first = self._done = done
        self._expected = expected
        self._bar.update(self._task, completed=done, total=expected)

    def advance(self, count: int, more: str = "") -> None:
        """Count what was done since the last call; ``more`` is said after the rate."""
        self._done += count
        now = time.monotonic()
        rate = (self._done - self._first) / max(now - self._started, 1e-9)
        self._bar.update(self._task, completed=self._done, rate=f"{rate:,.0f}", description=f"encoding{more}")
        if self._bar.disable and now - self._told >= LINE_EVERY_S:
            self._told = now
            of, left = "", ""
            if self._expected:
                of = f" of about {self._expected:,}"
                seconds = round(max(self._expected - self._done, 0) / max(rate, 1e-9))
                left = f", {datetime.timedelta(seconds=seconds)} left"
            note(f"{self._done:,}{of} {self._unit}, {rate:,.0f} a second{left}{more}")


@contextlib.contextmanager
def job_progress(unit: str) -> Iterator[JobProgress]:
    """Show how far a long job is while the block runs."""
    with progress_bar(unit) as bar:
        yield JobProgress(bar, unit)


def metrics_table(columns: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of the nine metrics, a column for each evaluation, and the gain where there are two."""
    table = Table()
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    values = list(columns.values())
    if len(values) == 2:
        table.add_column("gain", justify="right")
    for metric in values[0]:
        cells = [f"{value[metric]:.4f}" for value in values]
        if len(values) == 2:
            cells.append(f"{values[1][metric] - values[0][metric]:+.4f}")
        table.add_row(metric, *cells)
    return table


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import what an extra installs, and say which one it is where it is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CognateError(
            f"this command needs the package {error.name}, which is not installed: "
            f"pip install 'cognate[{extra}]'"
        ) from error
