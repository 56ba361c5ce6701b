"""gRPC's own services (health, reflection, channelz): as they are, but for how their requests are read."""

import inspect
from collections.abc import AsyncIterator
from typing import Any

import grpc

from serving.reading import Reading
from serving.refusal import Refusal


def read_in_turn(handler: Any, reading: Reading) -> Any:
    """Make a handler that reads each request by ``reading``.

    Args:
        handler: gRPC's, of any kind, with a deserializer.
        reading: Bounds the requests on their way.
    """

    async def requests(context: Any) -> AsyncIterator[Any]:
        try:
            while (raw := await reading.read(context)) is not None:
                yield handler.request_deserializer(raw)
        except Refusal as why:
            status = why.status()
            await context.abort(status.code, status.details, status.trailing_metadata or ())

    async def request(context: Any) -> Any:
        async for first in requests(context):
            return first
        return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")

    async def answer(_: Any, context: Any) -> Any:
        answered = handler.unary_unary(await request(context), context)
        return await answered if inspect.isawaitable(answered) else answered

    async def answer_with_many(_: Any, context: Any) -> None:
        if handler.request_streaming:
            answers = handler.stream_stream(requests(context), context)
        else:
            answers = handler.unary_stream(await request(context), context)
        if inspect.isawaitable(answers):
            await answers
            return
        async for each in answers:
            await context.write(each)

    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(
            answer_with_many, response_serializer=handler.response_serializer
        )
    return grpc.stream_unary_rpc_method_handler(answer, response_serializer=handler.response_serializer)
