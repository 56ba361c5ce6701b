"""A connection to Milvus: every call has a deadline, and what fails is one sentence."""

import logging
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pymilvus

from cognate.errors import ArtifactError, CognateError, UnavailableError
from cognate.milvus.location import TOKEN_VARIABLE, MilvusLocation, MilvusOptions

NOT_FOUND = 100
"""Milvus's code for a collection that is not there."""

NOT_LOADED = 101
"""Milvus's code for a collection that it does not search in yet, as milvus-lite after a restart."""

_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

# It logs every failure with its traceback, whoever handles it.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)

OLDEST = (2, 5)
"""The first version of Milvus whose fields may be null."""


class _GoneError(Exception):
    """Milvus did not answer a call. No ``grpc.RpcError``, after which pymilvus would try again, and again."""


class _Deadline(grpc.UnaryUnaryClientInterceptor):
    """Gives every call of pymilvus a deadline, and tells at once when Milvus is gone."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        timeout = self._seconds if details.timeout is None else min(details.timeout, self._seconds)
        call = continuation(details._replace(timeout=timeout), request)
        error = call.exception()
        if isinstance(error, grpc.RpcError) and error.code() in _GONE:
            raise _GoneError(f"{error.code().name}: {error.details()}")
        return call


class MilvusConnection:
    """A connection to Milvus. For several threads.

    Attributes:
        location: What it was made for.
        client: pymilvus's; its calls belong inside ``told``.
    """

    def __init__(self, location: MilvusLocation, options: MilvusOptions) -> None:
        """Connect.

        Raises:
            UnavailableError: Milvus does not answer.
            CognateError: It refuses the token, or the file of milvus-lite cannot be opened.
        """
        self.location = location
        self.options = options
        address = _lite_address(location) if location.is_file else location.server
        self._channel = _channel(address, tls=location.tls)
        with self.told():
            if not location.is_file:
                _probe(address, options.timeout)
            try:
                self.client: Any = pymilvus.MilvusClient(
                    uri=f"http://{address}",
                    token=options.token,
                    db_name=location.database,
                    timeout=options.timeout,
                    channel=grpc.intercept_channel(self._channel, _Deadline(options.timeout)),
                    dedicated=True,
                )
                self._check_version()
            except BaseException:
                self._channel.close()
                raise

    def _check_version(self) -> None:
        """Refuse a server that has no fields without a value, which are in every index."""
        said = self.client.get_server_version(timeout=self.options.timeout)
        version = re.search(r"(\d+)\.(\d+)", said)
        if version and (int(version[1]), int(version[2])) < OLDEST:
            raise CognateError(
                f"Milvus at {self.location.server} is version {said}; cognate needs "
                f"{'.'.join(map(str, OLDEST))} or newer, so update it"
            )

    def close(self) -> None:
        """Close it."""
        self.client.close()
        self._channel.close()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turn what fails inside into one sentence.

        Raises:
            UnavailableError: Milvus does not answer.
            ArtifactError: There is no such collection.
            CognateError: Milvus refuses what it was asked.
        """
        try:
            yield
        except (pymilvus.exceptions.MilvusException, grpc.RpcError, _GoneError, OSError) as error:
            raise self._sentence(error) from error

    def _sentence(self, error: BaseException) -> CognateError:
        causes: list[BaseException] = [error]
        # pymilvus raises errors from themselves.
        while (cause := causes[-1].__cause__) is not None and cause not in causes:
            causes.append(cause)
        where = f"Milvus at {self.location.server}"
        for one in causes:
            if isinstance(one, grpc.RpcError) and one.code() in _DENIED:
                return CognateError(
                    f"{where} refuses this user; give its USER:PASSWORD or API key in {TOKEN_VARIABLE}"
                )
            if isinstance(one, _GoneError | OSError) or (
                isinstance(one, grpc.RpcError) and one.code() in _GONE
            ):
                return UnavailableError(
                    f"{where} does not answer ({_short(one)}); see whether it runs, and try again"
                )
        if isinstance(error, pymilvus.exceptions.MilvusException):
            if error.code == NOT_LOADED:
                return UnavailableError(f"{where} has not loaded {self.location} yet; try again")
            if error.code == NOT_FOUND:
                return ArtifactError(
                    f"{where} has no collection for {self.location}: {_short(error.message)}"
                )
            return CognateError(f"{where} refused a request: {_short(error.message)}")
        return CognateError(f"{where} failed: {_short(error)}")

    def target_of(self, alias: str) -> str | None:
        """The collection that an alias stands for; None where there is no such alias."""
        with self.told():
            try:
                described = self.client.describe_alias(alias, timeout=self.options.timeout)
            except pymilvus.exceptions.MilvusException as error:
                if error.__cause__ is not None and not isinstance(
                    error.__cause__, pymilvus.exceptions.MilvusException
                ):
                    raise
                # Of a code that differs from Milvus to milvus-lite.
                return None
        return str(described["collection_name"])

    def has_collection(self, name: str) -> bool:
        """Whether there is a collection, or an alias, of a name."""
        with self.told():
            return bool(self.client.has_collection(name, timeout=self.options.timeout))

    def properties(self, collection: str) -> dict[str, str]:
        """The properties of a collection."""
        with self.told():
            described = self.client.describe_collection(collection, timeout=self.options.timeout)
            return dict(described.get("properties") or {})

    def count(self, collection: str, consistency: str = "strong") -> int:
        """How many records a collection holds."""
        with self.told():
            counted = self.client.query(
                collection,
                filter="",
                output_fields=["count(*)"],
                consistency_level=consistency.title(),
                timeout=self.options.timeout,
            )
            return int(counted[0]["count(*)"])

    def query(self, collection: str, ids: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Fields of records by id, in any order; those that there are not are left out."""
        with self.told():
            found: list[dict[str, Any]] = []
            for start in range(0, len(ids), QUERY_IDS):
                some = list(ids[start : start + QUERY_IDS])
                found += self.client.get(
                    collection,
                    ids=some,
                    output_fields=list(fields),
                    consistency_level=self.options.consistency.title(),
                    timeout=self.options.timeout,
                )
            return found


QUERY_IDS = 512
"""Records that are asked for at a time: a message has a limit, and a text may have 64 KiB."""


def _channel(address: str, *, tls: bool) -> grpc.Channel:
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # Milvus that was down is found again soon after it is up.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
    ]
    if tls:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(), options)
    return grpc.insecure_channel(address, options)


def _probe(address: str, timeout: float) -> None:
    """See whether anybody listens: gRPC would try until the deadline, and not say why it fails."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout).close()


def _lite_address(location: MilvusLocation) -> str:
    """Open a file of milvus-lite in this process, and give the address that it is served at."""
    try:
        from milvus_lite.server_manager import server_manager_instance
    except ImportError:
        raise CognateError(
            f"{location} is a file of milvus-lite, which is not installed; pip install 'cognate[milvus]'"
        ) from None
    if not Path(location.server).absolute().parent.is_dir():
        raise ArtifactError(f"there is no folder for {location.server}; make it, or give another file")
    logging.getLogger("milvus_lite").setLevel(logging.CRITICAL)
    logging.getLogger("grpc._server").addFilter(_is_no_missing_method)
    uri = server_manager_instance.start_and_get_uri(location.server)
    if uri is None:
        raise CognateError(
            f"{location.server} cannot be opened: it is damaged, or another process has it open, and one at "
            "a time can; stop that, or run a Milvus server"
        )
    return str(uri).removeprefix("http://")


def _is_no_missing_method(logged: logging.LogRecord) -> bool:
    """Whether it is not of a method that milvus-lite lacks: pymilvus asks for one, and does without it."""
    return logged.getMessage() != "Exception calling application: Method not implemented!"


def _short(error: object) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]
