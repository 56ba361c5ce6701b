"""What commands write: results on standard output, the rest on standard error."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cognate.errors import CognateError

# A pipe has no width: tables that go into one are not folded to 80 columns.
out = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


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
