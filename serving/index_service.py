"""IndexService: what indexes a server holds, and changing them while it answers."""

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from cognate.errors import CognateError
from cognate.v1 import index_pb2, index_pb2_grpc
from serving.indexes import IndexRegistry
from serving.refusal import bad_field, index_refused
from serving.settings import Settings, is_index_name


class IndexService(index_pb2_grpc.IndexServiceServicer):
    """Answers ListIndexes, LoadIndex, RollbackIndex and UnloadIndex.

    Raises ``Refusal``, which the boundary turns into a status; that the caller may, the boundary sees to.
    """

    def __init__(self, indexes: IndexRegistry, settings: Settings) -> None:
        """Make the service.

        Args:
            indexes: Those that are searched.
            settings: The server's.
        """
        self._indexes = indexes
        self._settings = settings

    async def ListIndexes(  # noqa: N802
        self, _request: index_pb2.ListIndexesRequest, _context: Any
    ) -> index_pb2.ListIndexesResponse:
        """List the indexes."""
        return index_pb2.ListIndexesResponse(indexes=map(self._describe, self._indexes.names()))

    async def LoadIndex(  # noqa: N802
        self, request: index_pb2.LoadIndexRequest, _context: Any
    ) -> index_pb2.LoadIndexResponse:
        """Load a version and switch to it."""
        if not is_index_name(request.name):
            raise bad_field("name", "must be up to 64 letters, digits, dots, dashes and underscores")
        await _refusing(self._indexes.load(request.name, self._folder(request.path)))
        return index_pb2.LoadIndexResponse(index=self._describe(request.name))

    async def RollbackIndex(  # noqa: N802
        self, request: index_pb2.RollbackIndexRequest, _context: Any
    ) -> index_pb2.RollbackIndexResponse:
        """Switch to the version before."""
        await _refusing(self._indexes.rollback(request.name))
        return index_pb2.RollbackIndexResponse(index=self._describe(request.name))

    async def UnloadIndex(  # noqa: N802
        self, request: index_pb2.UnloadIndexRequest, _context: Any
    ) -> index_pb2.UnloadIndexResponse:
        """Serve an index no longer."""
        await self._indexes.unload(request.name)
        return index_pb2.UnloadIndexResponse()

    def _folder(self, path: str) -> Path:
        """The folder that a caller names, where it is one that the server may load."""
        if not path:
            raise bad_field("path", "is empty; give the folder of an index on the server's disk")
        settings = self._settings
        roots = [*settings.index_roots, *settings.indexes.values()]
        if settings.watch is not None:
            roots.append(settings.watch)
        try:
            # Links followed, so that none leads out.
            folder = Path(path).resolve()
        except (OSError, ValueError, RuntimeError):  # Too long, a NUL byte, links in a circle.
            raise bad_field("path", "is no path that a folder can have") from None
        if not any(folder.is_relative_to(root.resolve()) for root in roots):
            raise bad_field(
                "path",
                "is not below a folder that this server may load indexes from: its index roots, the folder "
                "that it watches, and the indexes that it was started with",
                reason="PATH_NOT_ALLOWED",
            )
        return Path(path)

    def _describe(self, name: str) -> index_pb2.IndexDescription:
        served = self._indexes.served(name)
        index = served.version.index
        manifest = index.manifest
        loading = self._indexes.loading == name
        description = index_pb2.IndexDescription(
            name=name,
            kind=manifest.kind,
            count=manifest.count,
            dimension=manifest.dimension,
            metric=manifest.metric,
            fingerprint=manifest.fingerprint,
            version=index.version,
            previous_version="" if served.previous is None else served.previous.version,
            state=index_pb2.INDEX_STATE_LOADING if loading else index_pb2.INDEX_STATE_SERVING,
        )
        description.created_at.FromDatetime(manifest.created_at)
        return description


async def _refusing(change: Awaitable[None]) -> None:
    try:
        await change
    except CognateError as why:
        raise index_refused(why) from why
