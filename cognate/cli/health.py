"""``cognate health``."""

from typing import Annotated

import typer

from cognate.cli.connection import TARGET, Target, Tls, TlsCa, TlsClient, connect
from cognate.cli.terminal import fail, out


def health(
    target: Target = TARGET,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")] = 3.0,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_client: TlsClient = None,
) -> None:
    """Say whether a server is ready to answer: exit code 0 if so, 1 if not. For health checks.

    Example: cognate health --target localhost:50051
    """
    with connect(target, timeout, tls, tls_ca, tls_client) as client:
        if not client.is_ready():
            fail(f"{target} is not serving")
    out.print(f"{target} is serving")
