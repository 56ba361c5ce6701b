"""What lies around every call: it is counted, refused while the server stops, and always ends in a status."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from serving import refusal
from serving.access import Access, right_for
from serving.refusal import Refusal

OURS = "/cognate.v1."

_log = logging.getLogger(__name__)


class Boundary(grpc.aio.ServerInterceptor):
    """Around every call of the contract's services; health and reflection pass untouched.

    It reads requests and writes answers itself, so that a message that cannot be read or written is a
    status of ours too, where gRPC would say UNKNOWN.
    """

    def __init__(self, access: Access | None = None, *, no_administration: str = "") -> None:
        """Make a boundary.

        Args:
            access: Who may call what. None: anybody anything.
            no_administration: Why methods that need the right "admin" are refused here; empty where they
                are not.
        """
        self._access = access or Access()
        self._no_administration = no_administration
        self._stopping = False
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Put a call's handler inside the boundary."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not method.startswith(OURS):
            return handler

        async def serve(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            # Not until the answer is sent is the call over.
            self._under_way += 1
            self._idle.clear()
            context.add_done_callback(self._ended)  # type: ignore[arg-type]
            try:
                return await self._answer(handler, method, raw, context)
            except Refusal as why:
                status = why.status()
            except Exception:
                _log.exception("%s failed", method)
                status = refusal.unexpected().status()
            return await context.abort(status.code, status.details, status.trailing_metadata or ())

        # Without serializers of its own, gRPC hands over the bytes.
        return grpc.unary_unary_rpc_method_handler(serve)

    async def drain(self, grace: float) -> bool:
        """Refuse new calls from now on, and wait for those that are under way.

        Args:
            grace: Seconds to wait at most.

        Returns:
            Whether all of them were answered.
        """
        self._stopping = True
        if not self._under_way:
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except TimeoutError:
            return False
        return True

    async def _answer(self, handler: Any, method: str, raw: bytes, context: Any) -> bytes:
        if self._stopping:
            raise refusal.stopping()
        caller = self._access.admit(method, context.invocation_metadata() or ())
        if self._no_administration and right_for(method) == "admin":
            raise refusal.not_permitted(self._no_administration)
        try:
            request = handler.request_deserializer(raw)
        except DecodeError:
            raise refusal.bad_message(f"{method.rpartition('/')[2]}Request") from None
        caller.check(method, request)
        answer = caller.visible(await handler.unary_unary(request, context))
        response: bytes = handler.response_serializer(answer)
        return response

    def _ended(self, ctx: object) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()
