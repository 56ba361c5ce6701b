"""Reads records, encodes them, writes the index: one chunk at a time, in bounded memory.

What is done lies in a work folder beside the destination, chunk by chunk; a job that was interrupted, in
whatever way, is gone on with from there. The main thread reads and writes while others encode (another
thread, or the workers of a cluster), so that the encoder waits only for a chunk to be committed. Whoever
encodes, chunks have the same borders and are committed in the order of the source.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cognate.artifact import check_destination, publishing
from cognate.bundle import Bundle
from cognate.devices import Device
from cognate.errors import ArtifactError, CognateError, FingerprintError
from cognate.index import Index, IndexManifest, IndexWriter
from cognate.index_kinds import Layout
from cognate.milvus.location import MilvusLocation
from cognate.records import Record, Rejects
from cognate.searchable import index_location
from cognate.updates import check_no_updates, open_index
from indexer.chunk_encoding import ChunkEncoder, Cluster, open_encoder
from indexer.milvus_job import MilvusJob
from indexer.sources import Source, index_records, open_source
from indexer.work_folder import Chunk, WorkFolder, discard

CHUNK = 4096
"""Records that are encoded, and committed to the work folder, together; a few chunks are in memory."""

OnDuplicate = Literal["refuse", "last"]


@dataclass
class Tally:
    """How far a job is.

    Attributes:
        expected: How many records the source has, about; None where that is not known.
        resumed: Records that an interrupted job had done.
        kept: Records that are done and stay, whatever happens.
        encoded: Texts that this run encoded.
        reused: Records whose vectors this run took from the index to reuse.
        repeated: Records of this run whose text an earlier record has, and which were not encoded again.
        replaced: Records that a later one with the same id took the place of.
        device: Where it encodes; empty before it begins.
    """

    expected: int | None = None
    resumed: int = 0
    kept: int = 0
    encoded: int = 0
    reused: int = 0
    repeated: int = 0
    replaced: int = 0
    device: str = ""


def work_folder_of(destination: Path) -> Path:
    """Where the job of a destination keeps what it has done."""
    return destination.absolute().with_name(f".{destination.name}.job")


def build(
    source: str | Path | Sequence[str | Path] | Source,
    bundle: str | Path,
    destination: str | Path | MilvusLocation,
    *,
    layout: Layout = Layout("auto"),  # noqa: B008, for it is frozen
    device: Device = "auto",
    force: bool = False,
    rejects: Rejects | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_duplicate: OnDuplicate = "refuse",
    reuse: str | Path | None = None,
    restart: bool = False,
    tally: Tally | None = None,
    on_start: Callable[[Tally], None] | None = None,
    cluster: Cluster | None = None,
    on_note: Callable[[str], None] = lambda sentence: None,
) -> IndexManifest:
    """Encode every record of a source and publish the index of them.

    Run again after it was interrupted, it goes on where it was: at most the chunk that was being encoded is
    encoded again, and the index is the one of an uninterrupted job.

    Args:
        source: What ``indexer.open_source`` takes: a record file of any size, several, patterns, folders of
            Parquet files, URLs, an index, ``-``; or a source, such as ``indexer.sql_source`` gives.
        bundle: The bundle to encode with.
        destination: The index's folder, or its alias in Milvus, which is switched to the new collection at
            the end; how to talk to Milvus, the environment says (``MilvusOptions.from_environment``).
        layout: What kind of index; by default chosen by its size.
        device: Where to encode.
        force: Whether an index that is there is replaced.
        rejects: Takes bad lines; without it the first one raises.
        on_progress: Called with the number of records done since the last call, in another thread.
        on_duplicate: What becomes of a record with the id of an earlier one: "refuse" stops the job, "last"
            drops the earlier one.
        reuse: An index of the same bundle, from which the vectors of equal texts are taken.
        restart: Throw away what an interrupted job has done.
        tally: Kept up to date.
        on_start: Called before the first record is encoded.
        cluster: The Ray cluster that encodes and fills inverted files, to the same vectors and records; None
            is this machine, without Ray. Records are read, and the work folder and the index written, here.
        on_note: Called with a sentence for people about the cluster, in any thread.

    Returns:
        The manifest of the index.

    Raises:
        CognateError: A bad line, two records with one id, no record at all, a damaged bundle, a kind that
            cannot be built, a source that cannot be read, a destination that exists, cannot be written or has
            updates beside it, a cluster that is not there, or an interrupted job of other input or settings.
            The destination is as it was then; what was done is kept in the work folder.
    """
    place = index_location(destination)
    tally = tally if tally is not None else Tally()
    milvus = MilvusJob(place, layout, force) if isinstance(place, MilvusLocation) else None
    destination = place.local_path if isinstance(place, MilvusLocation) else place
    if milvus:
        milvus.check()
    else:
        check_destination(destination, IndexManifest.KIND, force=force)
        check_no_updates(destination)
    records = source if isinstance(source, Source) else open_source(source)
    opened = Bundle.open(bundle)
    dimension = opened.manifest.dimension
    layout.check(dimension)
    folder = work_folder_of(destination)
    with ExitStack() as stack:
        old = None if reuse is None else stack.enter_context(closing(_open_old(Path(reuse), opened)))
        encoder = stack.enter_context(open_encoder(opened, device, cluster, on_note))
        stack.enter_context(_disk_errors_told(destination))
        settings = {
            **records.settings,
            "bundle": opened.manifest.fingerprint[:12],
            "device": encoder.device,
            "records in a chunk": str(CHUNK),
            "on_duplicate": on_duplicate,
            "index to reuse": "none" if old is None else old.version,
            **({"place in Milvus": str(place)} if milvus else {}),
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        if restart:
            discard(folder)
        with _open_work(folder, dimension, settings, keep=records.repeatable) as work:
            tally.resumed = tally.kept = work.count
            tally.replaced = work.replaced
            tally.device = encoder.device
            tally.expected = records.expected
            if on_start:
                on_start(tally)
            if old is not None and not work.count:
                work.add_old_texts(record.text for record in index_records(old))
            job = _Job(encoder, work, records, old, on_duplicate == "last", tally, on_progress)
            with closing(records.read(rejects)) as stream:
                job.run(milvus.checked(stream) if milvus else stream)
            if not work.count:
                raise CognateError(f"{records.name} has no good record, so no index was made")
            if milvus:
                manifest = milvus.publish(work, opened)
            else:
                manifest = _publish(work, encoder, opened, destination, layout, force=force)
        shutil.rmtree(folder, ignore_errors=True)
    tally.kept = 0
    return manifest


@contextmanager
def _open_work(
    folder: Path, dimension: int, settings: Mapping[str, str], *, keep: bool
) -> Iterator[WorkFolder]:
    """Open the work folder; where the job cannot be resumed, begin with an empty one and leave none."""
    if keep:
        with WorkFolder(folder, dimension, settings) as work:
            yield work
        return
    with WorkFolder(folder, dimension, settings):
        pass
    discard(folder)
    try:
        with WorkFolder(folder, dimension, settings) as work:
            yield work
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open_old(folder: Path, bundle: Bundle) -> Index:
    try:
        return open_index(folder, fingerprint=bundle.manifest.fingerprint, device="cpu")
    except FingerprintError:
        raise FingerprintError(
            f"{folder} has vectors of another bundle than {bundle.folder}, so none can be reused; "
            "leave --reuse out to encode every text (cognate index build takes the records of an index, too: "
            f"cognate index build {folder} --bundle …)"
        ) from None


def _publish(
    work: WorkFolder,
    encoder: ChunkEncoder,
    bundle: Bundle,
    destination: Path,
    layout: Layout,
    *,
    force: bool,
) -> IndexManifest:
    # What a job that was killed here left.
    for partial in work.path.glob("*.partial"):
        shutil.rmtree(partial)
    with (
        publishing(destination, IndexManifest.KIND, force=force, within=work.path) as partial,
        IndexWriter(partial, bundle.manifest.dimension, layout) as writer,
    ):
        for records, vectors in work.chunks(CHUNK):
            writer.add(records, vectors)
        return writer.finish(bundle, build=encoder.build_approximate)


class _Job:
    """The loop: while chunks are encoded, the next one is read, and the first of them is staged."""

    def __init__(
        self,
        encoder: ChunkEncoder,
        work: WorkFolder,
        source: Source,
        old: Index | None,
        replace: bool,
        tally: Tally,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self._encoder = encoder
        self._work = work
        self._source = source
        self._old = old
        self._old_rows = np.empty(0, np.int64) if old is None else old.all_rows()
        self._replace = replace
        self._tally = tally
        self._on_progress = on_progress or (lambda count: None)
        self._read = hashlib.sha256()

    def run(self, records: Iterator[Record]) -> None:
        """Encode and commit all records that are not yet in the work folder."""
        self._skip(records)
        encoded: deque[tuple[Chunk, Future[NDArray[np.float32]]]] = deque()
        failure = None
        upcoming = self._next(records)
        while upcoming or encoded:
            while upcoming and len(encoded) < self._encoder.at_once:
                encoded.append((upcoming, self._submit(upcoming)))
                try:
                    upcoming = self._next(records)
                except Exception as error:  # The chunks before it are good, and kept.
                    upcoming, failure = None, error
            chunk, vectors = encoded.popleft()
            self._work.stage(chunk, replace=self._replace)
            old = self._old_vectors(list(chunk.old.values())) if self._old else None
            self._work.commit(chunk, vectors.result(), old)
            self._count(chunk)
        if failure:
            raise failure

    def _old_vectors(self, positions: list[int]) -> NDArray[np.float32]:
        """Vectors of the old index, by position among its records: rows of an updated one have gaps."""
        assert self._old is not None  # noqa: S101
        return self._old.vectors(self._old_rows[positions].tolist())

    def _skip(self, records: Iterator[Record]) -> None:
        """Read again what an interrupted job has read, and see that it is the same."""
        for record in itertools.islice(records, self._work.count):
            self._update(record)
        if self._read.hexdigest() != self._work.read_sha256:
            raise CognateError(
                f"the first {self._work.count:,} records of {self._source.name} are not those that the "
                "interrupted job read (their sha256 differs); give --restart to begin anew"
            )

    def _next(self, records: Iterator[Record]) -> Chunk | None:
        chunk = []
        for record in itertools.islice(records, CHUNK):
            self._update(record)
            chunk.append(record)
        return self._work.plan(chunk, self._read.hexdigest()) if chunk else None

    def _update(self, record: Record) -> None:
        fields = [record.id, record.text, record.label, record.attributes]
        self._read.update(json.dumps(fields, ensure_ascii=False).encode() + b"\n")

    def _submit(self, chunk: Chunk) -> "Future[NDArray[np.float32]]":
        if len(chunk.records) > len(chunk.new):
            self._on_progress(len(chunk.records) - len(chunk.new))
        return self._encoder.submit(chunk.new_texts, self._on_progress)

    def _count(self, chunk: Chunk) -> None:
        if self._source.repeatable:
            self._tally.kept = self._work.count
        self._tally.encoded += len(chunk.new)
        self._tally.reused += len(chunk.old)
        self._tally.repeated += len(chunk.same) + len(chunk.earlier)
        self._tally.replaced = self._work.replaced


@contextmanager
def _disk_errors_told(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise ArtifactError(f"{destination} could not be written: {os.strerror(error.errno)}") from error
