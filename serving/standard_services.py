"""gRPC's own services (health, reflection, channelz): as they are, but for how their requests are read."""

import inspect
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving.grpc_calls import Call
from serving.grpc_server import Serve
from serving.reading import Reading
from serving.refusal import Refusal

MAX_BYTES = 2**14
"""Of a request to these services, so that many may be on their way."""


class _Context:
    """A call as these services see it: they write messages, not bytes."""

    def __init__(self, call: Call, handler: Any) -> None:
        self._call = call
        self._serialize = handler.response_serializer
        self.abort = call.abort
        self.invocation_metadata = call.invocation_metadata
        self.peer = call.peer

    async def write(self, message: Any) -> None:
        await self._call.write(self._serialize(message))


def read_in_turn(handler: Any, reading: Reading) -> Serve:
    """Make what answers the calls of a method, and reads each request by ``reading``.

    Args:
        handler: Of any kind, as gRPC's generated code makes them.
        reading: Bounds the requests on their way.
    """

    def parsed(raw: bytes) -> Any:
        try:
            return handler.request_deserializer(raw)
        except DecodeError:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT, "BAD_MESSAGE", "the request cannot be read"
            ) from None

    async def requests(call: Call) -> AsyncIterator[Any]:
        while (raw := await reading.read(call)) is not None:
            yield parsed(raw)

    async def request(call: Call) -> Any:
        raw = await reading.read(call)
        if raw is None:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "BAD_MESSAGE", "the call has no request")
        return parsed(raw)

    async def answer(call: Call) -> None:
        context = _Context(call, handler)
        if not handler.response_streaming:
            answered = handler.unary_unary(await request(call), context)
            await context.write(await answered if inspect.isawaitable(answered) else answered)
            return
        if handler.request_streaming:
            answers = handler.stream_stream(requests(call), context)
        else:
            answers = handler.unary_stream(await request(call), context)
        if inspect.isawaitable(answers):
            await answers
            return
        async for each in answers:
            await context.write(each)

    async def serve(call: Call) -> None:
        call.max_message_bytes = MAX_BYTES
        try:
            await answer(call)
        except Refusal as why:
            call.refuse(why)
        else:
            call.end(grpc.StatusCode.OK)

    return serve
