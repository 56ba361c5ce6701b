"""``--on-error`` and ``--rejects``: what becomes of bad lines."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from cognate.errors import CognateError, RecordError
from cognate.records import Rejects

OnError = Annotated[
    Literal["stop", "skip"], typer.Option(help="What to do with a bad line: stop there, or skip it.")
]
RejectsFile = Annotated[
    Path | None, typer.Option("--rejects", help="Where skipped lines are told. [default: OUT.rejects.txt]")
]


def rejects_path(rejects: Path | None, destination: Path) -> Path:
    """Where skipped lines are told: the file that was given, or one beside the destination."""
    return rejects or destination.absolute().with_name(destination.name + ".rejects.txt")


@contextlib.contextmanager
def keep_rejects(on_error: str, path: Path) -> Iterator[Rejects | None]:
    """Keep what was wrong with each skipped line in a file, which is made when there is one.

    Args:
        on_error: "stop" or "skip".
        path: Of the file.

    Yields:
        What to give to a reader of records; None where it shall stop at the first bad line.
    """
    if on_error == "stop":
        yield None
        return
    with contextlib.ExitStack() as stack:
        file = None

        def report(error: RecordError) -> None:
            nonlocal file
            try:
                if file is None:
                    # Pairs are read before the folder of --out, and so its parent, is made.
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file = stack.enter_context(path.open("w", encoding="utf-8"))
                file.write(f"{error}\n")
            except OSError as why:
                # Whoever reads the source would take it for an error of that.
                raise CognateError(
                    f"{path} cannot be written: {why.strerror}; give another --rejects"
                ) from why

        yield Rejects(report)
