"""Writes an index into Milvus: a new collection, whole before an alias is switched to it."""

import contextlib
import json
import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pymilvus
from numpy.typing import NDArray

from cognate.artifact import installed_versions
from cognate.bundle import Bundle
from cognate.errors import ArtifactError, CognateError, UnsupportedError
from cognate.index import IndexManifest
from cognate.index_kinds import FLAT_BYTES, Layout
from cognate.milvus.connection import MilvusConnection
from cognate.milvus.index import FINGERPRINT, MANIFEST, PREVIOUS, read_manifest
from cognate.records import MAX_ID_BYTES, MAX_LABEL_BYTES, Record

MAX_TEXT_BYTES = 65535
MAX_ATTRIBUTES_BYTES = 65535
"""Of a VARCHAR and of a JSON, Milvus takes no more."""

INSERT_RECORDS = 1000
INSERT_BYTES = 8 * 1024 * 1024
"""Of the texts and vectors that are written at once, about; a server takes messages of 64 MiB."""

HNSW = {"M": 32, "efConstruction": 200}


def check_layout(layout: Layout) -> None:
    """Refuse a kind of index that is not Milvus's.

    Raises:
        CognateError: It is so.
    """
    if layout.factory is not None or layout.storage != "fp32" or layout.kind not in ("auto", "flat", "hnsw"):
        raise CognateError(
            "an index in Milvus is of kind flat or hnsw, with fp32 vectors; give --kind auto, flat or hnsw, "
            "and neither --storage nor --factory"
        )


def check_alias(connection: MilvusConnection, *, force: bool) -> str | None:
    """See whether an index may be published under the alias that a connection was made for.

    Returns:
        The collection that it stands for now; None where it is new.

    Raises:
        ArtifactError: It stands for one, and ``force`` is not given; or the name is that of a collection.
    """
    location = connection.location
    target = connection.target_of(location.collection)
    if target is None and connection.has_collection(location.collection):
        raise ArtifactError(
            f"{location} is a collection, where cognate needs the name for an alias; give another name"
        )
    if target is not None:
        read_manifest(connection, target)
        if not force:
            raise ArtifactError(
                f"{location} is there already; give --force to switch it to the new index, or another name"
            )
    return target


def check_record(record: Record) -> Record:
    """Refuse a record that Milvus has no room for.

    Raises:
        UnsupportedError: It is so.
    """
    sizes = (
        ("text", record.text, MAX_TEXT_BYTES),
        ("attributes", json.dumps(record.attributes, ensure_ascii=False), MAX_ATTRIBUTES_BYTES),
    )
    for what, value, most in sizes:
        if len(value) > most // 4 and (size := len(value.encode())) > most:
            raise UnsupportedError(
                "records",
                f"have {what} of {size} bytes ({record.id or record.text[:40]!r}), and Milvus takes "
                f"up to {most}; shorten it, or build an index in a folder",
            )
    return record


def rows(records: Iterable[Record], vectors: NDArray[np.float32], first: int = 0) -> Iterator[dict[str, Any]]:
    """Records as Milvus's rows; one without an id gets its number."""
    for number, (record, vector) in enumerate(zip(records, vectors, strict=True), first):
        check_record(record)
        yield {
            "id": record.id if record.id is not None else str(number),
            "text": record.text,
            "label": record.label,
            "attributes": record.attributes,
            "vector": vector,
        }


def publish(
    chunks: Iterable[tuple[list[Record], NDArray[np.float32]]],
    connection: MilvusConnection,
    bundle: Bundle,
    layout: Layout,
    *,
    count: int,
    dimension: int,
    force: bool,
    note: Path,
) -> IndexManifest:
    """Write records and vectors into a new collection, and switch the alias to it.

    The collection that the alias stood for is kept, to go back to; the one that it stood for before that is
    dropped.

    Args:
        chunks: Of records with their vectors: float32, shape (records, dimension), unit length.
        connection: Made for the alias.
        bundle: The one whose vectors these are.
        layout: As ``check_layout`` lets it pass.
        count: How many records there are.
        dimension: Components of a vector.
        force: Whether an alias that is there is switched.
        note: A file for the name of the collection, so that a job that is run again after it was killed
            drops what it left.

    Raises:
        UnavailableError: Milvus does not answer. The alias is as it was.
        CognateError: As ``check_alias``, or Milvus refuses a record.
    """
    location = connection.location
    before = check_alias(connection, force=force)
    _drop_left(connection, note, before)
    kind = layout.kind if layout.kind != "auto" else "flat" if 4 * dimension * count <= FLAT_BYTES else "hnsw"
    now = datetime.now(UTC).replace(microsecond=0)
    collection = f"{location.collection}_{now:%Y%m%d_%H%M%S}_{secrets.token_hex(4)}"
    manifest = IndexManifest(
        artifact=IndexManifest.KIND,
        format_version=IndexManifest.FORMAT_VERSION,
        created_at=now,
        versions=installed_versions("cognate", "pymilvus", "onnxruntime"),
        files={},
        kind=kind,
        parameters={"backend": "milvus", "collection": collection},
        metric="cosine",
        dimension=dimension,
        count=count,
        fingerprint=bundle.manifest.fingerprint,
        model=bundle.manifest.model,
        recall_at_10=1.0 if kind == "flat" else None,
    )
    note.write_text(collection)
    properties = {
        MANIFEST: manifest.model_dump_json(),
        FINGERPRINT: manifest.fingerprint,
        PREVIOUS: before or "",
    }
    try:
        _create(connection, collection, manifest, properties)
        first = 0
        for records, vectors in chunks:
            _insert(connection, collection, list(rows(records, vectors, first)))
            first += len(records)
        with connection.told():
            connection.client.flush(collection, timeout=connection.options.timeout)
        there = connection.count(collection)
        if there != count:
            raise CognateError(
                f"Milvus at {location.server} holds {there} of the {count} records that were written; run "
                "the command again"
            )
        with connection.told():
            switch = connection.client.create_alias if before is None else connection.client.alter_alias
            switch(collection, location.collection, timeout=connection.options.timeout)
    except BaseException:
        with contextlib.suppress(CognateError):
            _drop(connection, collection)
        raise
    note.unlink()
    if before is not None:
        # What is no longer there, or is not to be dropped, is no reason to fail: the switch is done.
        with contextlib.suppress(CognateError):
            oldest = connection.properties(before).get(PREVIOUS)
            if oldest and oldest != collection:
                _drop(connection, oldest)
    return manifest


def _create(
    connection: MilvusConnection, collection: str, manifest: IndexManifest, properties: dict[str, str]
) -> None:
    schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    varchar = pymilvus.DataType.VARCHAR
    schema.add_field("id", varchar, max_length=MAX_ID_BYTES, is_primary=True)
    schema.add_field("text", varchar, max_length=MAX_TEXT_BYTES)
    schema.add_field("label", varchar, max_length=MAX_LABEL_BYTES, nullable=True)
    schema.add_field("attributes", pymilvus.DataType.JSON, nullable=True)
    schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=manifest.dimension)
    indexes = pymilvus.MilvusClient.prepare_index_params()
    # Inner products of unit vectors are their cosines, and a vector of zeros has 0 with all.
    indexes.add_index(
        "vector",
        index_type=manifest.kind.upper(),
        metric_type="IP",
        params=HNSW if manifest.kind == "hnsw" else {},
    )
    with connection.told():
        connection.client.create_collection(
            collection,
            schema=schema,
            index_params=indexes,
            properties=properties,
            timeout=connection.options.timeout,
        )


def _insert(connection: MilvusConnection, collection: str, some: list[dict[str, Any]]) -> None:
    batch: list[dict[str, Any]] = []
    size = 0
    for row in some:
        batch.append(row)
        size += 4 * len(row["text"]) + row["vector"].nbytes
        if len(batch) == INSERT_RECORDS or size >= INSERT_BYTES or row is some[-1]:
            with connection.told():
                connection.client.insert(collection, batch, timeout=connection.options.timeout)
            batch, size = [], 0


def _drop_left(connection: MilvusConnection, note: Path, current: str | None) -> None:
    """Drop what a job that was killed while it wrote left, unless that had been switched to."""
    if not note.exists():
        return
    left = note.read_text()
    if left and left != current:
        _drop(connection, left)


def _drop(connection: MilvusConnection, collection: str) -> None:
    with connection.told():
        connection.client.drop_collection(collection, timeout=connection.options.timeout)
