"""IndexService: what indexes a server holds, and changing them while it answers."""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cognate import wire
from cognate.bundle import BundleManifest
from cognate.errors import ArtifactError, CognateError
from cognate.milvus.location import MilvusLocation
from cognate.records import MAX_ID_BYTES, Record, parse_record
from cognate.searchable import Location, index_location
from cognate.updates import Applied, IndexUpdates, UpdatedIndex
from cognate.v1 import embedding_pb2, index_pb2, index_pb2_grpc
from serving.callers import read_caller
from serving.encoding import check_count, check_text, encode_texts, timings, usages
from serving.index_changes import IndexChanges
from serving.indexes import IndexRegistry
from serving.refusal import bad_field, index_refused, no_updates, not_written, other_fingerprint
from serving.remote_indexes import RemoteFailures
from serving.settings import Settings, is_index_name
from serving.shared_encoding import SharedEncoder
from serving.vectors import read_vector

if TYPE_CHECKING:
    from cognate.milvus.updates import MilvusUpdates


class IndexService(index_pb2_grpc.IndexServiceServicer):
    """Answers ListIndexes, LoadIndex, RollbackIndex, UnloadIndex, Upsert and Delete.

    Raises ``Refusal``, which the boundary turns into a status; that the caller may, the boundary sees to.
    """

    def __init__(
        self,
        indexes: IndexRegistry,
        changes: IndexChanges,
        settings: Settings,
        encoder: SharedEncoder,
        model: BundleManifest,
        failures: RemoteFailures,
    ) -> None:
        """Make the service.

        Args:
            indexes: Those that are searched.
            changes: Changes them, in all workers.
            settings: The server's.
            encoder: Encodes the texts of records that are written.
            model: The encoder's.
            failures: Of those indexes that other machines keep.
        """
        self._failures = failures
        self._indexes = indexes
        self._changes = changes
        self._settings = settings
        self._encoder = encoder
        self._model = model

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
        await _refusing(self._changes.load(request.name, self._location(request.path)))
        return index_pb2.LoadIndexResponse(index=self._describe(request.name))

    async def RollbackIndex(  # noqa: N802
        self, request: index_pb2.RollbackIndexRequest, _context: Any
    ) -> index_pb2.RollbackIndexResponse:
        """Switch to the version before."""
        await _refusing(self._changes.rollback(request.name))
        return index_pb2.RollbackIndexResponse(index=self._describe(request.name))

    async def UnloadIndex(  # noqa: N802
        self, request: index_pb2.UnloadIndexRequest, _context: Any
    ) -> index_pb2.UnloadIndexResponse:
        """Serve an index no longer."""
        await _refusing(self._changes.unload(request.name))
        return index_pb2.UnloadIndexResponse()

    async def Upsert(  # noqa: N802
        self, request: index_pb2.UpsertRequest, context: Any
    ) -> index_pb2.UpsertResponse:
        """Encode records and write them."""
        name = self._updatable(request.index)
        check_count("records", len(request.records), self._settings.max_texts)
        records = [self._read_record(number, message) for number, message in enumerate(request.records)]
        vectors = np.empty((len(records), self._model.dimension), np.float32)
        texts = {}
        for number, message in enumerate(request.records):
            if message.HasField("embedding"):
                field = f"records[{number}].embedding"
                vectors[number] = read_vector(field, message.embedding, self._model.dimension)
            else:
                texts[number] = message.text
        if request.fingerprint and request.fingerprint != self._model.fingerprint:
            raise other_fingerprint(request.fingerprint, self._model.model, self._model.fingerprint)
        if len(texts) < len(records) and not request.fingerprint:
            raise bad_field("fingerprint", "is empty; give that of the model that the embeddings are of")
        encoded = None
        if texts:
            positions = list(texts)
            encoded = await encode_texts(
                self._encoder,
                list(texts.values()),
                embedding_pb2.EncodeRequest(truncation=request.truncation),
                context,
                caller=read_caller(context),
                streamed=False,
                default="passage",
                field=lambda position: f"records[{positions[position]}].text",
            )
            vectors[positions] = encoded.vectors
        started = time.monotonic()
        applied = await self._update(name, lambda updates: updates.apply(records, vectors))
        return index_pb2.UpsertResponse(
            index=name,
            inserted=applied.inserted,
            replaced=applied.replaced,
            superseded=applied.superseded,
            revision=applied.revision,
            usages=[] if encoded is None else usages(encoded),
            timings=timings(encoded, time.monotonic() - started),
        )

    async def Delete(  # noqa: N802
        self, request: index_pb2.DeleteRequest, _context: Any
    ) -> index_pb2.DeleteResponse:
        """Delete records."""
        name = self._updatable(request.index)
        check_count("ids", len(request.ids), self._settings.max_texts)
        ids = list(request.ids)
        for number, identifier in enumerate(ids):
            if not 0 < len(identifier.encode()) <= MAX_ID_BYTES:
                raise bad_field(f"ids[{number}]", f"must have 1 to {MAX_ID_BYTES} bytes")
        applied = await self._update(name, lambda updates: updates.apply(deletes=ids))
        return index_pb2.DeleteResponse(index=name, deleted=applied.deleted, revision=applied.revision)

    def _updatable(self, name: str) -> str:
        """The name of the index that an update is for; refused where this server takes none."""
        settings = self._settings
        if settings.workers > 1:
            raise no_updates(
                f"this server has {settings.workers} workers, and an update would reach only one; run one "
                "worker with --updates"
            )
        if not settings.updates:
            raise no_updates("updates are off; start the server with --updates")
        return self._indexes.find(name)[0]

    def _read_record(self, number: int, message: index_pb2.Record) -> Record:
        field = f"records[{number}]"
        check_text(f"{field}.text", message.text, self._settings.max_text_bytes)
        row: dict[str, object] = {"id": message.id, "text": message.text, "label": message.label}
        if message.HasField("attributes"):
            row["attributes"] = wire.plain_struct(message.attributes)
        try:
            return parse_record(row, require_id=True)
        except ValueError as why:
            raise bad_field(field, str(why), "BAD_RECORD") from None

    async def _update(
        self, name: str, change: "Callable[[IndexUpdates | MilvusUpdates], Applied]"
    ) -> Applied:
        if self._indexes.served(name).version.index.remote:
            self._failures.refuse_if_down(name)
            with self._failures.refusing(name):
                return await self._indexes.update(name, change)
        try:
            return await self._indexes.update(name, change)
        except ArtifactError as why:
            raise not_written(why) from why

    def _location(self, path: str) -> Location:
        """The folder or collection that a caller names, where it is one that the server may load."""
        if not path:
            raise bad_field("path", "is empty; give the folder of an index on the server's disk")
        settings = self._settings
        given = list(settings.indexes.values())
        try:
            location = index_location(path)
        except CognateError as why:
            raise bad_field("path", str(why)) from None
        if isinstance(location, MilvusLocation):
            if any(isinstance(one, MilvusLocation) and location.is_beside(one) for one in given):
                return location
            raise bad_field(
                "path",
                "is not at a Milvus, and in a database there, of an index that this server was started with",
                reason="PATH_NOT_ALLOWED",
            )
        roots = [*settings.index_roots, *(one for one in given if isinstance(one, Path))]
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
            count=index.count,
            revision=index.state.revision if isinstance(index, UpdatedIndex) else 0,
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
