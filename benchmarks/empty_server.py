"""What a call costs in our server's transport: ``python -P empty_server.py PORT``.

It answers calls of no bytes with no bytes. Run by ``serving.py``; with -P, or that would be what ``serving``
is here.
"""

import asyncio
import sys

from serving import event_loop
from serving.grpc_calls import Call
from serving.grpc_server import GrpcServer


async def answer(call: Call) -> None:
    """Answer a call."""
    await call.read()
    call.answer(b"")


async def serve(port: int) -> None:
    """Serve until killed."""
    server = GrpcServer(lambda handler, method: answer, max_calls=1000, max_message_bytes=1024)
    server.add_registered_method_handlers("benchmark.Empty", {"Call": None})
    server.listen("127.0.0.1", port, shared=False)
    server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    event_loop.run(serve(int(sys.argv[1])))
