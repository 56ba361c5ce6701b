"""What lies around every call: it is observed, refused while the server stops, and ends in a status."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving import refusal
from serving.access import Access, Caller, right_for
from serving.grpc_calls import Call
from serving.grpc_server import Serve
from serving.observing import Observe, ObservedCall, Unobserved
from serving.reading import Reading
from serving.refusal import Refusal
from serving.standard_services import read_in_turn

OURS = "/cognate.v1."

STANDARD_PLACES = 512
"""Requests on their way at a time to gRPC's own services, which others must not keep from answering."""

_log = logging.getLogger(__name__)


class Boundary:
    """Around every call of the contract's services; of health and the like, it reads the requests only.

    A message that cannot be read or written is a status of ours too. And it bounds the calls under way and
    the bytes of their messages, those that are still on their way as if they were as large as may be: what is
    over waits or is refused before it is read into a message.
    """

    def __init__(
        self,
        observe: Observe,
        access: Access,
        *,
        max_calls: int,
        max_streams: int,
        max_bytes: int,
        max_message_bytes: int,
        no_administration: str = "",
    ) -> None:
        """Make a boundary, on the server's event loop.

        Args:
            observe: Begins each call.
            access: Who may call what.
            max_calls: Calls under way, streams included.
            max_streams: Streams under way; fewer where ``max_bytes`` has no room for a message of each.
            max_bytes: Of the requests and answers under way; as many of those that calls wait for, and as
                many of those that streams do. A call alone may have more.
            max_message_bytes: Of a request.
            no_administration: Why methods that need the right "admin" are refused here; empty where they
                are not.
        """
        self._observe = observe
        self._access = access
        self._no_administration = no_administration
        self._max_calls = max_calls
        places = max(1, max_bytes // max_message_bytes)
        self._max_streams = min(max_streams, places)
        self._max_bytes = max_bytes
        self._reading = Reading(places)
        self._standard_reading = Reading(STANDARD_PLACES)
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way = 0
        self._streams = 0
        self._bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def around(self, handler: Any, method: str) -> Serve:
        """Put a method's handler inside the boundary.

        Args:
            handler: As gRPC's generated code makes them.
            method: Its full name.
        """
        if not method.startswith(OURS):
            return read_in_turn(handler, self._standard_reading)

        async def serve(context: Call) -> None:
            try:
                with self._observe(method, context) as call:
                    answer = await self._answer(handler, method, context, call)
            except Exception as error:
                _end(context, method, error)
            else:
                context.answer(answer)

        async def serve_stream(context: Call) -> None:
            try:
                with self._observe(method, context) as call:
                    await self._answer_stream(handler, method, context, call)
            except Exception as error:
                _end(context, method, error)
            else:
                context.end(grpc.StatusCode.OK)

        return serve_stream if handler.response_streaming else serve

    async def drain(self, grace: float) -> bool:
        """Refuse new calls from now on, and wait for those that are under way.

        Args:
            grace: Seconds to wait at most.

        Returns:
            Whether all of them were answered.
        """
        self._stopping.set_result(None)
        if not self._under_way:
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except TimeoutError:
            return False
        return True

    async def _answer(
        self, handler: Any, method: str, context: Call, call: ObservedCall | Unobserved
    ) -> bytes:
        held = self._enter(context)
        caller = self._admit(method, context)
        raw = await self._reading.read(context)
        if raw is None:
            raise refusal.bad_message(_request_name(method))
        self._hold(held, len(raw))
        request = _parsed(handler, method, raw)
        # Counted still, for what was made of it.
        del raw
        call.received(request)
        caller.check(method, request)
        try:
            response = caller.visible(await handler.unary_unary(request, context))
        except Refusal as why:
            caller.hide(why)
            raise
        call.answered(response)
        answer: bytes = handler.response_serializer(response)
        self._hold(held, len(answer))
        return answer

    async def _answer_stream(
        self,
        handler: Any,
        method: str,
        context: Call,
        call: ObservedCall | Unobserved,
    ) -> None:
        if self._streams >= self._max_streams:
            raise refusal.too_many_calls("streams")
        held = self._enter(context, streams=1)
        caller = self._admit(method, context)
        sizes: deque[int] = deque()

        async def requests() -> AsyncIterator[Any]:
            while (raw := await self._next(context)) is not None:
                self._hold(held, len(raw))
                sizes.append(len(raw))
                message = _parsed(handler, method, raw)
                call.received(message.request)
                caller.check(method, message.request)
                yield message

        try:
            async with aclosing(handler.stream_stream(requests(), context)) as responses:
                async for response in responses:
                    call.answered(response.response)
                    answer = handler.response_serializer(response)
                    self._hold(held, len(answer))
                    await context.write(answer)
                    self._release(held, sizes.popleft() + len(answer))
        except Refusal as why:
            caller.hide(why)
            raise

    async def _next(self, context: Call) -> bytes | None:
        """The next message of a stream; None at its end. Who waits for one does not hold up the stopping."""
        reading = asyncio.ensure_future(context.read())
        waited: list[asyncio.Future[Any]] = [reading, self._stopping]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise refusal.stopping()
            return reading.result()
        finally:
            reading.cancel()

    def _admit(self, method: str, context: Call) -> Caller:
        """Find out who calls, and whether he may, before his request is read."""
        caller = self._access.admit(method, context.invocation_metadata())
        if self._no_administration and right_for(method) == "admin":
            raise refusal.not_permitted(self._no_administration)
        return caller

    def _enter(self, context: Call, *, streams: int = 0) -> list[int]:
        """Count a call until its end, which is when its answer is sent, or refuse it.

        Args:
            context: Of the call.
            streams: 1 for a stream.

        Returns:
            The bytes that it holds, in a list of one.
        """
        if self._stopping.done():
            raise refusal.stopping()
        if self._under_way >= self._max_calls:
            raise refusal.too_many_calls("calls")
        held = [0]
        self._under_way += 1
        self._streams += streams
        self._idle.clear()

        def ended(_: object) -> None:
            self._release(held, held[0])
            self._streams -= streams
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

        context.add_done_callback(ended)
        return held

    def _hold(self, held: list[int], size: int) -> None:
        """Count a message of a call, or refuse the call; a call alone may hold more."""
        if self._bytes > held[0] and self._bytes + size > self._max_bytes:
            raise refusal.too_many_calls("bytes")
        held[0] += size
        self._bytes += size

    def _release(self, held: list[int], size: int) -> None:
        held[0] -= size
        self._bytes -= size


def _parsed(handler: Any, method: str, raw: bytes) -> Any:
    try:
        return handler.request_deserializer(raw)
    except DecodeError:
        raise refusal.bad_message(_request_name(method)) from None


def _request_name(method: str) -> str:
    return f"{method.rpartition('/')[2]}Request"


def _end(context: Call, method: str, error: Exception) -> None:
    """End a call in a status."""
    if not isinstance(error, Refusal):
        _log.error("%s failed", method, exc_info=error)
        error = refusal.unexpected()
    context.refuse(error)
