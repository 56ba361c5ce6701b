"""``cognate health``."""

from typing import Annotated

import typer

from cognate.cli.encode import TARGET
from cognate.cli.terminal import fail, out
from cognate.client import Client


def health(
    target: Annotated[str, typer.Option(help="HOST:PORT of the server.", envvar="COGNATE_TARGET")] = TARGET,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")] = 3.0,
) -> None:
    """Say whether a server is ready to answer: exit code 0 if so, 1 if not. For health checks.

    Example: cognate health --target localhost:50051
    """
    with Client(target, timeout=timeout) as client:
        if not client.is_ready():
            fail(f"{target} is not serving")
    out.print(f"{target} is serving")
