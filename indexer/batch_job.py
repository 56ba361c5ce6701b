"""Reads records, encodes them, writes the index: one chunk at a time, in bounded memory."""

import itertools
from collections.abc import Callable
from pathlib import Path

from cognate.artifact import publishing
from cognate.encoder import Device, Encoder
from cognate.errors import CognateError
from cognate.index import IndexManifest, IndexWriter
from cognate.index_kinds import Layout
from cognate.records import Rejects, read_records

CHUNK = 4096
"""Records that are in memory at a time, with their vectors."""


def build(
    source: str | Path,
    bundle: str | Path,
    destination: str | Path,
    *,
    layout: Layout = Layout("auto"),  # noqa: B008, for it is frozen
    device: Device = "auto",
    force: bool = False,
    rejects: Rejects | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> IndexManifest:
    """Encode every record of a file and publish the index of them.

    Args:
        source: A record file of any size, or ``-`` for JSON Lines on standard input.
        bundle: The bundle to encode with.
        destination: The index's folder.
        layout: What kind of index; by default chosen by its size.
        device: Where to encode.
        force: Whether an index that is there is replaced.
        rejects: Takes bad lines; without it the first one raises.
        on_progress: Called with the number of records done since the last call.

    Returns:
        The manifest of the index.

    Raises:
        CognateError: A bad line, two records with one id, no record at all, a damaged bundle, a kind
            that cannot be built, or a destination that exists or cannot be written. Nothing is left behind
            then.
    """
    with publishing(Path(destination), IndexManifest.KIND, force=force) as partial:
        encoder = Encoder(bundle, device=device, bulk=True)
        records = read_records(source, rejects=rejects)
        with IndexWriter(partial, encoder.dimension, layout) as writer:
            while chunk := list(itertools.islice(records, CHUNK)):
                vectors = encoder.encode([record.text for record in chunk], on_progress=on_progress)
                writer.add(chunk, vectors)
            manifest = writer.finish(encoder.bundle)
        if not manifest.count:
            raise CognateError(f"{source} has no good record, so no index was made")
    return manifest
