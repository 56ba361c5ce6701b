"""Writes records of a file to an index that is there, and deletes others: a chunk at a time, each a batch."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cognate.devices import Device
from cognate.encoder import Encoder
from cognate.errors import CognateError, RecordError
from cognate.milvus.location import MilvusLocation
from cognate.opening import open_updates
from cognate.records import MAX_ID_BYTES, Rejects, read_numbered_records
from cognate.updates import Applied

CHUNK = 4096
"""Records that are in memory at a time, with their vectors, and that are written wholly or not at all."""


@dataclass(frozen=True, slots=True)
class Updated:
    """What an update did.

    Attributes:
        inserted: Records that are new.
        replaced: Records that took the place of one with their id.
        deleted: Records that are no more.
        superseded: Records that a later one with the same id took the place of.
        revision: Of the index, now.
        count: Records that the index holds now.
        changed: Of them, what was written or deleted since it was last compacted.
        device: Where the texts were encoded.
    """

    inserted: int
    replaced: int
    deleted: int
    superseded: int
    revision: int
    count: int
    changed: int
    device: str


def update(
    index: str | Path | MilvusLocation,
    bundle: str | Path,
    *,
    upserts: str | Path | None = None,
    deletes: str | Path | None = None,
    device: Device = "auto",
    rejects: Rejects | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Updated:
    """Delete records of an index, then write others, each in the place of the one with its id.

    What was done before an error stands; doing all of it again does no harm.

    Args:
        index: The index's folder, beside which the updates are kept, or its location in Milvus.
        bundle: The one that it was built with.
        upserts: A record file, or ``-`` for JSON Lines on standard input; each record has an id.
        deletes: A file with an id on each line.
        device: Where to encode.
        rejects: Takes bad lines of ``upserts``; without it the first one raises.
        on_progress: Called with the number of records done since the last call.

    Raises:
        CognateError: Neither is given, a bad line, another bundle, the index is missing, damaged or being
            updated by another process, or the disk is full.
    """
    if upserts is None and deletes is None:
        raise CognateError("there is nothing to do; give records to upsert, ids to delete, or both")
    encoder = Encoder(bundle, device=device, bulk=True)
    updates = open_updates(index, fingerprint=encoder.fingerprint)
    try:
        batches = [Applied(0, 0, 0, 0, updates.revision)]
        if deletes is not None:
            ids = read_ids(deletes)
            while some := list(itertools.islice(ids, CHUNK)):
                batches.append(updates.apply(deletes=some))
        if upserts is not None:
            records = read_numbered_records(upserts, require_id=True, rejects=rejects)
            while chunk := [record for _, record in itertools.islice(records, CHUNK)]:
                vectors = encoder.encode([record.text for record in chunk], on_progress=on_progress)
                batches.append(updates.apply(chunk, vectors))
        return Updated(
            inserted=sum(batch.inserted for batch in batches),
            replaced=sum(batch.replaced for batch in batches),
            deleted=sum(batch.deleted for batch in batches),
            superseded=sum(batch.superseded for batch in batches),
            revision=batches[-1].revision,
            count=updates.index.count,
            changed=updates.changed,
            device=encoder.device,
        )
    finally:
        updates.close()
        updates.index.close()


def read_ids(source: str | Path) -> Iterator[str]:
    """Read a file of ids: UTF-8, one on each line; empty lines are passed over.

    Raises:
        RecordError: A line that is no id.
        CognateError: The file cannot be read.
    """
    try:
        with Path(source).open("rb") as file:
            number = 0
            # A longer line is two, of which the first is too long.
            while line := file.readline(MAX_ID_BYTES + 3):
                number += 1
                content = line.rstrip(b"\r\n")
                if len(content) > MAX_ID_BYTES:
                    raise RecordError(str(source), number, f"the id is longer than {MAX_ID_BYTES} bytes")
                try:
                    identifier = content.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    reason = f"invalid UTF-8 at byte {error.start + 1} of the line"
                    raise RecordError(str(source), number, reason) from None
                if identifier:
                    yield identifier
    except OSError as error:
        raise CognateError(f"{source} cannot be read: {error.strerror}; give a file of ids") from error
