"""The command line: one module a command, the only place where the stages meet."""

import contextlib
import importlib.metadata
import logging
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import pydantic
import typer

# gRPC tells of connections that are closed, and of each TLS handshake that fails, on standard error, and
# waits until it is written: a server whose log's reader stalls would stall with it. It is read at its import.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from cognate.cli import (
    bundle,
    data,
    demo,
    encode,
    evaluate,
    export,
    health,
    import_,
    index,
    keys,
    models,
    runs,
    search,
    serve,
    top,
    train,
)
from cognate.cli.terminal import fail
from cognate.errors import CognateError

app = typer.Typer(
    name="cognate",
    help="Tune a text encoder on your own labels, and serve its search over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("runs")(runs.runs)
app.command("models")(models.models)
app.command("export")(export.export)
app.command("import")(import_.import_)
app.add_typer(bundle.app, name="bundle")
app.command("evaluate")(evaluate.evaluate)
app.add_typer(index.app, name="index")
app.command("serve")(serve.serve)
app.command("top")(top.top)
app.add_typer(keys.app, name="keys")
app.command("health")(health.health)
app.command("encode")(encode.encode)
app.command("search")(search.search)

DEBUG = "COGNATE_DEBUG"


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cognate {importlib.metadata.version('cognate')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a failure.", envvar=DEBUG)
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Tune a text encoder on your own labels, and serve its search over gRPC."""
    if debug:
        os.environ[DEBUG] = "1"


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave as if by an exception, so that whatever is half-written is removed on the way out."""
    # A second signal must not interrupt the removal.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    sys.stderr.write("\ninterrupted: nothing was left half-written\n")
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line; a failure is one line on standard error and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python would complain once more when it flushes.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        fail(_sentence(error))


def _sentence(error: Exception) -> str:
    if isinstance(error, CognateError):
        return str(error)
    if isinstance(error, pydantic.ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        return f"{where}: {what}" if where else what
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "there is not enough memory for this; use smaller batches or a smaller model"
    return f"{type(error).__name__}: {error} (a fault of cognate's own: run again with --debug and report it)"
