"""``RequestError``: what a call that failed means to its user."""

import re
import urllib.parse
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from cognate.errors import CognateError

_POSITION = re.compile(r"^(texts|queries|records|ids)\[(\d+)\]")
_CLOSED = re.compile(r"failed to connect.*Socket closed")
_TRIED = re.compile(r"last error: [A-Z_]+: ipv[46]:(\S+): ")
_TLS_REASON = re.compile(r"OPENSSL_internal:([^:]+(?:: [^:]+)?)")


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a request that the server refused.

    Attributes:
        field: Its name, such as ``texts[3]``, by its position in the whole list.
        description: What is wrong with it.
    """

    field: str
    description: str


class RequestError(CognateError):
    """A call that failed. What gRPC raised is its ``__cause__``.

    Attributes:
        code: gRPC's status code.
        reason: The server's stable name for the reason. None where it gave none.
        field_violations: The fields that it refused.
        retry_after: Seconds after which to try again. None where the server did not say.
    """

    def __init__(
        self,
        sentence: str,
        code: grpc.StatusCode,
        *,
        reason: str | None = None,
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.reason = reason
        self.field_violations = field_violations
        self.retry_after = retry_after


def request_error(
    error: grpc.RpcError, target: str, seconds: float, first: int, earlier: RequestError | None = None
) -> RequestError:
    """What a failed call means to its user.

    Args:
        error: What gRPC raised.
        target: The server's address.
        seconds: The call's timeout.
        first: The position, in the user's list, of the call's first text or query.
        earlier: What the attempt before this one ended in.
    """
    code = error.code()
    reason, retry_after = None, None
    violations: tuple[FieldViolation, ...] = ()
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.ErrorInfo):
            reason = detail.reason
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after = detail.retry_delay.ToTimedelta().total_seconds()
        elif isinstance(detail, error_details_pb2.BadRequest):
            violations = tuple(
                FieldViolation(_shift(violation.field, first), violation.description)
                for violation in detail.field_violations
            )
    said = error.details() or "no reason given"
    if violations:
        sentence = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        sentence = (
            f"{target} did not answer within {seconds:g} s; give a longer timeout, or check the address "
            "and the server's load"
        )
        if earlier is not None:
            sentence += f"; before that: {earlier}"
    elif code is grpc.StatusCode.NOT_FOUND:
        sentence = said
    elif reason is not None:
        # Cognate's own sentence; one without a reason is gRPC's, or a proxy's.
        sentence = f"{target}: {said}"
    elif code is grpc.StatusCode.UNAVAILABLE and "handshake failed" in said:
        why = _TLS_REASON.search(said)
        sentence = (
            f"TLS with {target} failed ({why[1].lower().replace('_', ' ') if why else said}); check that the "
            "server speaks TLS, and which roots to trust"
        )
    elif code is grpc.StatusCode.UNAVAILABLE and _CLOSED.fullmatch(said):
        sentence = f"{target} closed the connection; does it ask for TLS, or for a certificate?"
    elif code is grpc.StatusCode.UNAVAILABLE:
        # gRPC nests causes: the last one is the one that tells.
        cause = said.rsplit(": ", 1)[-1].rstrip(" ]")
        also = ""
        tried = _TRIED.search(said)
        if tried and (address := urllib.parse.unquote(tried[1])) != target:
            # A name may have several addresses, as localhost has, and gRPC tells of one alone: at another
            # there may be a server that refuses the connection, as an attempt before may have told.
            if earlier is not None and earlier.code is code and earlier.reason is None:
                return earlier
            cause += f" at {address}, the last address tried"
            also = ", and whether the server speaks TLS or asks for a certificate"
        sentence = (
            f"no server answers at {target} ({cause}); start one with `cognate serve`, or check the address"
            f"{also}"
        )
    elif code is grpc.StatusCode.UNIMPLEMENTED:
        sentence = f"{target} does not know this call ({said}); is it a Cognate server of this version?"
    else:
        sentence = f"{target} answered {code.name}: {said}"
    if retry_after is not None and "try again" not in said:
        sentence += f"; try again in {retry_after:g} s"
    return RequestError(sentence, code, reason=reason, field_violations=violations, retry_after=retry_after)


def not_ready(error: grpc.RpcError, target: str, seconds: float) -> RequestError:
    """What it means that a server did not take calls within some seconds."""
    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
        return request_error(error, target, seconds, 0)
    return RequestError(
        f"{target} was not ready within {seconds:g} s; start it with `cognate serve`, or look at its log",
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


def _details(error: grpc.RpcError) -> list[Message]:
    """The error details that came with a status; none where it has none or they cannot be read."""
    kinds: tuple[type[Message], ...] = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.RetryInfo,
        error_details_pb2.BadRequest,
    )
    details = []
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        for packed in status.details if status else ():
            for kind in kinds:
                message = kind()
                if packed.Unpack(message):
                    details.append(message)
    except (ValueError, DecodeError):
        return []
    return details


def _shift(field: str, first: int) -> str:
    """Number a field by the user's list, where the call had only a part of it."""
    return _POSITION.sub(lambda match: f"{match[1]}[{int(match[2]) + first}]", field)
