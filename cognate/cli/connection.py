"""How the commands that ask a server reach it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cognate.client import Client

API_KEY = "COGNATE_API_KEY"
"""The variable of the API key. There is no flag: what is in one can be read by all users of a machine."""

TARGET = "localhost:50051"

Target = Annotated[str, typer.Option(help="HOST:PORT of the server.", envvar="COGNATE_TARGET")]
Tls = Annotated[bool, typer.Option("--tls", help="Use TLS, and trust the usual roots.")]
TlsCa = Annotated[
    Path | None,
    typer.Option(help="Use TLS, and trust the roots in this PEM file.", envvar="COGNATE_TLS_CA"),
]
TlsClient = Annotated[
    Path | None,
    typer.Option(
        help="PEM file of a certificate and its key, for a server that asks for one.",
        envvar="COGNATE_TLS_CLIENT",
    ),
]


def connect(target: str, timeout: float, tls: bool, tls_ca: Path | None, tls_client: Path | None) -> Client:
    """A client with the API key of the environment, if there is one."""
    api_key = os.environ.get(API_KEY) or None
    return Client(target, timeout=timeout, api_key=api_key, tls=tls, ca=tls_ca, certificate=tls_client)
