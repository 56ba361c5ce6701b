"""grpc.channelz: the state of gRPC itself, where it is asked for."""

from collections.abc import Callable

import grpc
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from cognate.v1 import embedding_pb2
from tests.serving.servers import Running, failure

SHORT = embedding_pb2.EncodeRequest(texts=["open"])


def test_connections_and_calls_can_be_asked_for(serve: Callable[..., Running]) -> None:
    running = serve(channelz=True)
    for _ in range(3):
        running.stubs.encode(SHORT, timeout=60)
    stub = channelz_pb2_grpc.ChannelzStub(running.channel)
    told = []
    for server in stub.GetServers(channelz_pb2.GetServersRequest(), timeout=60).server:
        request = channelz_pb2.GetServerSocketsRequest(server_id=server.ref.server_id)
        for reference in stub.GetServerSockets(request, timeout=60).socket_ref:
            socket = stub.GetSocket(
                channelz_pb2.GetSocketRequest(socket_id=reference.socket_id), timeout=60
            ).socket
            if socket.local.tcpip_address.port == running.server.port:
                told.append((server.data.calls_succeeded >= 3, socket.data.streams_started >= 3))
    assert told == [(True, True)]


def test_nothing_of_it_is_told_unless_asked_for(running: Running) -> None:
    stub = channelz_pb2_grpc.ChannelzStub(running.channel)
    refused = failure(stub.GetServers, channelz_pb2.GetServersRequest())
    assert refused.code == grpc.StatusCode.UNIMPLEMENTED
