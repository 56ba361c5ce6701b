"""grpc.channelz: what this process has of servers, connections and calls."""

import ipaddress
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from serving.grpc_server import GrpcServer
from serving.http2 import Connection

MOST = 100
"""Servers or sockets in an answer."""


class ChannelzService(channelz_pb2_grpc.ChannelzServicer):
    """Answers what a server can; it has no channels to others. Servers are numbered from 1."""

    def __init__(self, servers: Sequence[GrpcServer]) -> None:
        """Begin to answer.

        Args:
            servers: Those of the process; more may come.
        """
        self._servers = servers

    async def GetTopChannels(self, request: Any, context: Any) -> Any:  # noqa: N802
        """None."""
        return channelz_pb2.GetTopChannelsResponse(end=True)

    async def GetChannel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """There is none."""
        await _not_found(context, "channel", request.channel_id)

    async def GetSubchannel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """There is none."""
        await _not_found(context, "subchannel", request.subchannel_id)

    async def GetServers(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The servers, with what they have answered."""
        numbers = range(max(1, request.start_server_id), len(self._servers) + 1)
        most = request.max_results or MOST
        return channelz_pb2.GetServersResponse(
            server=[self._server(number) for number in numbers[:most]], end=len(numbers) <= most
        )

    async def GetServer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """A server."""
        await self._check_server(context, request.server_id)
        return channelz_pb2.GetServerResponse(server=self._server(request.server_id))

    async def GetServerSockets(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The connections of a server, by their numbers."""
        await self._check_server(context, request.server_id)
        connections = self._servers[request.server_id - 1].connections
        numbers = sorted(each.number for each in connections if each.number >= request.start_socket_id)
        most = request.max_results or MOST
        references = [channelz_pb2.SocketRef(socket_id=number) for number in numbers[:most]]
        return channelz_pb2.GetServerSocketsResponse(socket_ref=references, end=len(numbers) <= most)

    async def GetSocket(self, request: Any, context: Any) -> Any:  # noqa: N802
        """A connection, with what it has had."""
        for server in self._servers:
            for connection in server.connections:
                if connection.number == request.socket_id:
                    return channelz_pb2.GetSocketResponse(socket=_socket(connection))
        await _not_found(context, "socket", request.socket_id)
        return None

    async def _check_server(self, context: Any, number: int) -> None:
        if not 0 < number <= len(self._servers):
            await _not_found(context, "server", number)

    def _server(self, number: int) -> Any:
        counts = self._servers[number - 1].counts()
        return channelz_pb2.Server(
            ref=channelz_pb2.ServerRef(server_id=number),
            data=channelz_pb2.ServerData(
                calls_started=counts.started, calls_succeeded=counts.succeeded, calls_failed=counts.failed
            ),
        )


def _socket(connection: Connection) -> Any:
    counts = connection.counts
    return channelz_pb2.Socket(
        ref=channelz_pb2.SocketRef(socket_id=connection.number),
        data=channelz_pb2.SocketData(
            streams_started=counts.started,
            streams_succeeded=counts.succeeded,
            streams_failed=counts.failed,
            messages_sent=counts.messages_sent,
            messages_received=counts.messages_received,
            keep_alives_sent=connection.keepalives,
        ),
        local=_address(connection.own_address),
        remote=_address(connection.address),
    )


def _address(address: tuple[Any, ...] | None) -> Any:
    if not address:
        return None
    host = str(address[0]).partition("%")[0]
    return channelz_pb2.Address(
        tcpip_address=channelz_pb2.Address.TcpIpAddress(
            ip_address=ipaddress.ip_address(host).packed, port=address[1]
        )
    )


async def _not_found(context: Any, what: str, number: int) -> None:
    await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {what} {number}")
