"""Connections to a server: the address, and what to trust there."""

import re
import urllib.parse
from pathlib import Path
from typing import Any

import grpc

from cognate.errors import CognateError

DEFAULT_PORT = 50051

MAX_ANSWER_BYTES = 65 * 1024 * 1024
"""A larger answer is refused: a little more than the 64 MiB of hits that a server gives."""

_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    # gRPC's own second is long beside the retries, and beside a server's start.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]
_MANY_ADDRESSES = ("dns:", "ipv4:", "ipv6:")
_GRPC_SCHEMES = ("unix:", "unix-abstract:", *_MANY_ADDRESSES)


def credentials(
    tls: bool, ca: str | Path | None, certificate: str | Path | None
) -> grpc.ChannelCredentials | None:
    """What to connect with; None without TLS."""
    if not (tls or ca or certificate):
        return None
    roots = _read_pem(ca, "CERTIFICATE") if ca else None
    own = _read_pem(certificate, "CERTIFICATE", "PRIVATE KEY") if certificate else None
    return grpc.ssl_channel_credentials(roots, private_key=own, certificate_chain=own)


def _read_pem(file: str | Path, *kinds: str) -> bytes:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise CognateError(f"{file} cannot be read: {error.strerror}; give a PEM file") from None
    for kind in kinds:
        # gRPC ends the process, or fails at every call, where there is none.
        if not re.search(rf"-----BEGIN [A-Z ]*{kind}-----".encode(), content):
            raise CognateError(f"{file} has no {kind.lower()} in it; give a PEM file with one")
    return content


def open_channel(module: Any, target: str, credentials: grpc.ChannelCredentials | None) -> Any:
    """A channel of grpc or of grpc.aio; with a target of gRPC's for many addresses, to all of them."""
    options = list(_CHANNEL_OPTIONS)
    if target.startswith(_MANY_ADDRESSES):
        # Else gRPC sends all calls to the first address that answers.
        options.append(("grpc.lb_policy_name", "round_robin"))
    if credentials is None:
        return module.insecure_channel(target, options)
    return module.secure_channel(target, credentials, options)


def check_target(target: str) -> str:
    """Give HOST:PORT, with the default port where there is none; or raise a CognateError."""
    if not isinstance(target, str) or not target.strip():
        raise CognateError("the target is empty; give HOST:PORT, such as localhost:50051")
    if target.startswith(_GRPC_SCHEMES):
        return target
    wrong = CognateError(f"the target {target!r} is no HOST:PORT; give one such as localhost:50051")
    try:
        parts = urllib.parse.urlsplit(f"//{target}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if not host or parts.netloc != target or "@" in target or port == 0 or re.search(r"\s", target):
        raise wrong
    if port is None:
        return f"{target.removesuffix(':')}:{DEFAULT_PORT}"
    return target
