"""Updates of an index: records written and deleted by id, searched together with the index itself.

The index stays as it was built. Beside INDEX lies INDEX.updates:

    updates.sqlite    what has changed (``cognate.update_log``), on the disk before it is answered
    base-R            once compacted: an index with all changes up to revision R, in INDEX's place
    lock              held by the one process that writes

An ``UpdatedIndex`` has the changes in memory: the vectors that were written are compared one by one, and what
was replaced or deleted is passed over in the index. Compaction writes both into a new index; the transaction
that names it drops the changes that it holds, so that a process killed at any moment leaves the one or the
other.
"""

import fcntl
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from cognate.artifact import publishing, sync_path
from cognate.devices import IndexDevice, IndexGpus
from cognate.errors import ArtifactError, CognateError, FingerprintError
from cognate.exact import exact_top_k
from cognate.filters import Filter, to_sql
from cognate.index import Index, IndexManifest, IndexWriter, attributes_text, version_of
from cognate.index_kinds import Kind, Layout, Storage
from cognate.matching import Matching
from cognate.records import MAX_ID_BYTES, Accuracy, Hit, Record
from cognate.update_log import Change, State, UpdateLog, read_log, read_state

SUFFIX = ".updates"
LOCK = "lock"

CHUNK = 4096
"""Records that a compaction holds at a time."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch did.

    Attributes:
        inserted: Records that are new.
        replaced: Records that took the place of one with their id.
        deleted: Records that are no more.
        superseded: Records of the batch that a later one with the same id took the place of.
        revision: Of the index, now that the batch is in it.
    """

    inserted: int
    replaced: int
    deleted: int
    superseded: int
    revision: int


def updates_folder(index: str | Path) -> Path:
    """Where the updates of an index are: beside its folder, links followed."""
    folder = Path(index).resolve()
    return folder.with_name(folder.name + SUFFIX)


def state_of(folder: Path) -> State:
    """What opening an index with its updates would give; its files are not checked.

    Raises:
        ArtifactError: There is no index, or its updates are damaged or another's.
    """
    root_version = version_of(folder)
    state = read_state(updates_folder(folder))
    if state is None:
        return State(root_version, "", root_version, 0)
    _check_root(folder, root_version, state)
    return state


def check_no_updates(folder: Path) -> None:
    """Refuse a place for a new index that has the updates of a former one beside it, compacted or not.

    Args:
        folder: Where the index shall be.

    Raises:
        ArtifactError: There are some, with which the new index could not be opened; or they are damaged.
    """
    updates = updates_folder(folder)
    if read_state(updates) is not None:
        raise ArtifactError(
            f"{updates} holds updates of the index that was at {folder}, and a new one there could not be "
            f"opened; give another --out, or delete {updates} where the new index can be without them"
        )


def open_index(
    folder: str | Path,
    *,
    fingerprint: str | None = None,
    device: IndexDevice = "auto",
    gpus: IndexGpus = "one",
) -> Index:
    """Open an index with the updates that it has, as they are now.

    Args:
        folder: The index's.
        fingerprint: As ``Index`` has it.
        device: As ``Index`` has it. An index with updates is searched on the CPU.
        gpus: As ``Index`` has it.

    Raises:
        ArtifactError: The index or its updates are missing, damaged, too new or of another index.
        FingerprintError: Its vectors are of another bundle.
        CognateError: There is no such device, or not for an index with updates.
    """
    folder = Path(folder)
    state: State | None = None
    while True:
        log = read_log(updates_folder(folder))
        if log is None:
            return Index(folder, fingerprint=fingerprint, device=device, gpus=gpus)
        before, (state, changes) = state, log
        try:
            return UpdatedIndex(folder, state, changes, fingerprint=fingerprint, device=device)
        except ArtifactError:
            # Another process may have compacted it meanwhile, and removed what it was.
            if before is not None and before.base == state.base:
                raise


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshot:
    """An updated index at one moment. Nothing in it ever changes.

    Attributes:
        revision: How many batches are in it.
        bitmap: uint8, a bit for each row of the base, set where it counts still; None where all do.
        hidden: How many do not.
        vectors: float32, shape (written, dimension): each vector that was written, in that order.
        alive: Which of them count still.
        slots: Those by id.
        count: Records.
    """

    revision: int
    bitmap: NDArray[np.uint8] | None
    hidden: int
    vectors: NDArray[np.float32]
    alive: NDArray[np.bool_]
    slots: dict[str, int]
    count: int

    def has_row(self, row: int) -> bool:
        """Whether a row of the base counts still."""
        return self.bitmap is None or bool(self.bitmap[row >> 3] >> (row & 7) & 1)


class UpdatedIndex(Index):
    """An index together with its updates; one thread changes it, while others search.

    Its rows are those of the base, and after them those of the records that were written, in that order. A
    row is never another record's, so that what a search found can be fetched, whatever was updated since.

    Attributes:
        folder: Of the index that was updated first.
    """

    def __init__(
        self,
        folder: Path,
        state: State,
        changes: Iterable[Change],
        *,
        fingerprint: str | None = None,
        device: IndexDevice = "auto",
    ) -> None:
        """Open the base, and put the changes on top of it.

        Args:
            folder: Of the index that was updated first.
            state: As the log has it.
            changes: As the log has them.
            fingerprint: As ``Index`` has it.
            device: "cuda" is refused.

        Raises:
            CognateError: As ``open_index``.
        """
        _check_root(folder, version_of(folder), state)
        if device == "cuda":
            raise CognateError(
                f"device cuda was asked for, but {folder} has updates, and with them it is searched on the "
                "CPU; use --index-device cpu"
            )
        base = updates_folder(folder) / state.base if state.base else folder
        super().__init__(base, fingerprint=fingerprint, device="cpu")
        self.folder = folder
        self._root_version = state.root_version
        self._base = state.base
        if self.version != state.base_version:
            self.close()
            raise ArtifactError(
                f"{base} is version {self.version}, and its updates are of {state.base_version}; "
                "put back a copy of both"
            )
        self._written: list[Record] = []
        # What filters ask for of the records that were written, as the base has it.
        self._columns = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._columns.execute("CREATE TABLE records (row INTEGER PRIMARY KEY, id, label, attributes)")
        self._columns_lock = threading.Lock()
        self._vectors = np.empty((0, self.dimension), np.float32)
        self._snapshot = _Snapshot(0, None, 0, self._vectors, np.empty(0, np.bool_), {}, self.manifest.count)
        try:
            self.apply(list(changes), state.revision)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close its files, and let go of what was written. No search may be under way."""
        super().close()
        if hasattr(self, "_columns"):
            self._columns.close()

    @property
    def count(self) -> int:
        """How many records it holds, updates included."""
        return self._snapshot.count

    @property
    def state(self) -> State:
        """What it is at this moment."""
        return State(self._root_version, self._base, self.version, self._snapshot.revision)

    @property
    def changed(self) -> int:
        """How many rows were written or hidden since it was compacted: what makes searching it slower."""
        snapshot = self._snapshot
        return len(snapshot.alive) + snapshot.hidden

    def apply(self, changes: Sequence[Change], revision: int) -> None:
        """Put changes on top of it, all at once for those who search. By one thread at a time.

        Args:
            changes: Each of another record.
            revision: That they make.

        Raises:
            ArtifactError: A vector has another dimension than the index.
        """
        snapshot = self._snapshot
        slots = dict(snapshot.slots)
        bitmap = snapshot.bitmap
        rows = [row for row in super().rows_of([c.id for c in changes]).values() if snapshot.has_row(row)]
        if rows:
            bitmap = (
                np.full((self.manifest.count + 7) // 8, 255, np.uint8) if bitmap is None else bitmap.copy()
            )
            for row in rows:
                bitmap[row >> 3] &= ~np.uint8(1 << (row & 7))
        gone = [slot for change in changes if (slot := slots.pop(change.id, None)) is not None]
        first = len(self._written)
        for change in changes:
            if change.record is not None and change.vector is not None:
                self._append(change.record, change.vector)
                slots[change.id] = len(self._written) - 1
        alive = np.concatenate([snapshot.alive, np.ones(len(self._written) - first, np.bool_)])
        alive[gone] = False
        hidden = snapshot.hidden + len(rows)
        self._snapshot = _Snapshot(
            revision,
            bitmap,
            hidden,
            self._vectors[: len(self._written)],
            alive,
            slots,
            self.manifest.count - hidden + len(slots),
        )

    def _append(self, record: Record, vector: NDArray[np.float32]) -> None:
        slot = len(self._written)
        if vector.shape != (self.dimension,):
            raise ArtifactError(
                f"the updates of {self.folder} have a vector of shape {vector.shape} where the index has "
                f"{self.dimension} dimensions; put back a copy of them"
            )
        if slot == len(self._vectors):
            # A snapshot keeps the array that it was made with; rows past its end are not its own.
            grown = np.empty((max(64, 2 * slot), self.dimension), np.float32)
            grown[:slot] = self._vectors
            self._vectors = grown
        self._vectors[slot] = vector
        attributes = None if record.attributes is None else json.dumps(record.attributes, ensure_ascii=False)
        with self._columns_lock:
            self._columns.execute(
                "INSERT INTO records VALUES (?, ?, ?, ?)", (slot, record.id, record.label, attributes)
            )
        self._written.append(record)

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The rows of records by id; an id that no record has is left out."""
        ids = list(ids)
        snapshot = self._snapshot
        found = {name: row for name, row in super().rows_of(ids).items() if snapshot.has_row(row)}
        found.update(
            (name, self.manifest.count + snapshot.slots[name]) for name in ids if name in snapshot.slots
        )
        return found

    def vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """The vectors of records by row, in the order asked for: float32, shape (rows, dimension)."""
        wanted = np.asarray(rows, np.int64)
        written = wanted >= self.manifest.count
        found = np.empty((len(wanted), self.dimension), np.float32)
        found[~written] = super().vectors(wanted[~written].tolist())
        found[written] = self._vectors[wanted[written] - self.manifest.count]
        return found

    def all_rows(self) -> NDArray[np.int64]:
        """As ``Index``; those of the base that were replaced or deleted are left out."""
        return self.revision_and_rows()[1]

    def revision_and_rows(self) -> tuple[int, NDArray[np.int64]]:
        """The revision, and the rows of all its records, at one moment: int64, ascending."""
        snapshot = self._snapshot
        base = np.arange(self.manifest.count)
        if snapshot.bitmap is not None:
            bits = np.unpackbits(snapshot.bitmap, count=self.manifest.count, bitorder="little")
            base = np.flatnonzero(bits)
        return snapshot.revision, np.concatenate([base, self.manifest.count + np.flatnonzero(snapshot.alive)])

    def search_rows(
        self,
        vectors: NDArray[np.float32],
        top_k: int,
        *,
        accuracy: Accuracy = "balanced",
        matching: Matching | None = None,
        stable: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As ``Index.search_rows``, in the records that there are when it is called, or ``matching`` was."""
        matching = matching or _everything(self._snapshot, self.manifest.count)
        return super().search_rows(vectors, top_k, accuracy=accuracy, matching=matching, stable=stable)

    def matching(self, filter: Filter) -> Matching:  # noqa: A002
        """The rows that a filter lets through, of the records that there are at this moment.

        Raises:
            FilterError: The filter is over a limit.
        """
        snapshot = self._snapshot
        base = super().matching(filter)
        if snapshot.bitmap is not None:
            bits = base.bits & snapshot.bitmap
            base = Matching(bits, int(np.bitwise_count(bits).sum()))
        condition, parameters = to_sql(filter)
        select = f"SELECT row FROM records WHERE {condition}"  # noqa: S608, to_sql binds all that came
        with self._columns_lock, closing(self._columns.execute(select, parameters)) as cursor:
            slots = np.fromiter((row for (row,) in cursor), np.int64)
        written = np.zeros(len(snapshot.alive), np.bool_)
        # Others may have been written since.
        written[slots[slots < len(written)]] = True
        written &= snapshot.alive
        return _Matching(base.bits, base.count + int(written.sum()), base, snapshot.vectors, written)

    def labels(self, rows: Iterable[int]) -> dict[int, str | None]:
        """The labels of records by row; None where one has none."""
        wanted = set(rows)
        in_base = {row for row in wanted if row < self.manifest.count}
        found = super().labels(in_base)
        found.update((row, self._written[row - self.manifest.count].label) for row in wanted - in_base)
        return found

    def _exact_of(
        self, vectors: NDArray[np.float32], k: int, matching: Matching | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if not isinstance(matching, _Matching):
            return super()._exact_of(vectors, k, matching)
        found = []
        if in_base := min(k, matching.count - matching.in_written):
            found.append(super()._exact_of(vectors, in_base, matching.base))
        return self._with_written(found, vectors, k, matching)

    def _nearest_of(
        self, vectors: NDArray[np.float32], k: int, accuracy: Accuracy, matching: Matching
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if not isinstance(matching, _Matching):
            return super()._nearest_of(vectors, k, accuracy, matching)
        found = []
        if in_base := min(k, matching.count - matching.in_written):
            if matching.base is None:
                found.append(self._nearest(vectors, in_base, accuracy))
            else:
                found.append(super()._nearest_of(vectors, in_base, accuracy, matching.base))
        return self._with_written(found, vectors, k, matching)

    def _with_written(
        self,
        found: list[tuple[NDArray[np.float32], NDArray[np.int64]]],
        vectors: NDArray[np.float32],
        k: int,
        matching: "_Matching",
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best k of what was found in the base and of what was written, at least one of them."""
        if in_written := min(k, matching.in_written):
            scores, slots = exact_top_k(vectors, matching.vectors, in_written, matching.written)
            found.append((scores, slots + self.manifest.count))
        all_scores = np.concatenate([scores for scores, _ in found], axis=1)
        all_rows = np.concatenate([rows for _, rows in found], axis=1)
        order = np.lexsort((all_rows, -all_scores), axis=1)[:, :k]
        return np.take_along_axis(all_scores, order, 1), np.take_along_axis(all_rows, order, 1)

    def records(self, rows: Sequence[int]) -> list[Record]:
        """The records of rows, in their order."""
        written, first = self._written, self.manifest.count
        in_base = iter(super().records([row for row in rows if row < first]))
        return [next(in_base) if row < first else written[row - first] for row in rows]

    def hits(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> list[Hit]:
        """The records of rows with their scores, in their order."""
        written, first = self._written, self.manifest.count
        of_base = rows < first
        in_base = iter(super().hits(rows[of_base], scores[of_base]))
        return [
            next(in_base) if row < first else Hit.of(written[row - first], score)
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _Matching(Matching):
    """Some rows of an updated index, at one moment.

    Attributes:
        bits: Of the base's rows.
        count: How many rows they are in all.
        base: Of the base's rows; None for all.
        vectors: That were written.
        written: Which of them; bool, shape (written,).
    """

    base: Matching | None
    vectors: NDArray[np.float32]
    written: NDArray[np.bool_]

    @property
    def in_written(self) -> int:
        """How many of the rows were written."""
        return int(self.written.sum())


def _everything(snapshot: _Snapshot, rows: int) -> _Matching:
    """All records of a snapshot, whose base has so many rows."""
    base = None if snapshot.bitmap is None else Matching(snapshot.bitmap, rows - snapshot.hidden)
    bits = np.empty(0, np.uint8) if base is None else base.bits
    return _Matching(bits, snapshot.count, base, snapshot.vectors, snapshot.alive)


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """An index that a compaction wrote, and nobody uses yet.

    Attributes:
        index: It, open.
        name: Its folder, below that of the updates.
        revision: What it holds.
    """

    index: UpdatedIndex
    name: str
    revision: int


class IndexUpdates:
    """The one that updates an index, among all processes. Safe to use from several threads.

    Attributes:
        folder: The index's.
        index: The index with all its updates. Compaction puts another in its place; whoever has one closes
            it.
    """

    index: UpdatedIndex

    def __init__(
        self, folder: str | Path, *, fingerprint: str | None = None, device: IndexDevice = "auto"
    ) -> None:
        """Open an index to update it, and remove what a killed compaction left.

        Args:
            folder: The index's.
            fingerprint: Of the bundle that texts are encoded with, as ``Index`` has it.
            device: As ``open_index``.

        Raises:
            ArtifactError: As ``open_index``, or its updates cannot be written.
            FingerprintError: Its vectors are of another bundle.
            CognateError: Another process updates it.
        """
        self.folder = Path(folder)
        self._updates = updates_folder(folder)
        # Whatever is wrong with the index is said before that another updates it.
        state_of(self.folder)
        # Closed or not, so that a compaction under way gives up.
        self._closed = threading.Event()
        self._changing = threading.Lock()
        self._compacting = threading.Lock()
        try:
            self._updates.mkdir(exist_ok=True)
            sync_path(self._updates.parent)
            self._lock = (self._updates / LOCK).open("a")
        except OSError as error:
            raise ArtifactError(f"{self._updates} cannot be written: {error.strerror}") from error
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CognateError(
                    f"{self.folder} is being updated by another server or command; one at a time can"
                ) from None
            # Read first, so that nothing is made beside an index that cannot be opened.
            state, changes = read_log(self._updates) or (state_of(self.folder), [])
            self.index = UpdatedIndex(self.folder, state, changes, fingerprint=fingerprint, device=device)
            try:
                self._log = UpdateLog(self._updates, state)
                self._remove_all_but(state.base)
            except BaseException:
                self.index.close()
                raise
        except BaseException:
            self._lock.close()
            raise

    @property
    def revision(self) -> int:
        """How many batches are in the index."""
        return self.index.state.revision

    @property
    def changed(self) -> int:
        """How many rows were written or hidden since the index was compacted."""
        return self.index.changed

    def close(self) -> None:
        """Let others update the index. The index itself stays open."""
        self._closed.set()
        with self._compacting, self._changing:
            if not self._lock.closed:
                self._log.close()
                self._lock.close()

    def apply(
        self,
        records: Sequence[Record] = (),
        vectors: NDArray[np.float32] | None = None,
        deletes: Sequence[str] = (),
        *,
        fingerprint: str | None = None,
    ) -> Applied:
        """Delete records and write others, as one batch: all of it or nothing, on the disk once this returns.

        Args:
            records: Each takes the place of the one with its id, or is new. Of two with one id the last
                counts.
            vectors: float32, shape (records, dimension), unit length.
            deletes: Ids, deleted before anything is written; one that there is not is passed over.
            fingerprint: Of the bundle that the vectors are of; None skips that check.

        Raises:
            CognateError: A record has no id, one that is too long or attributes that are no JSON object, or
                a vector is not of the index's dimension or not finite.
            FingerprintError: The vectors are of another bundle.
            ArtifactError: The disk is full or fails. Nothing was written, and all from before is there.
        """
        if vectors is None:
            vectors = np.empty((len(records), self.index.dimension if not len(records) else 0), np.float32)
        self._check(records, vectors, fingerprint)
        last = {record.id or "": number for number, record in enumerate(records)}
        with self._changing:
            self._check_open()
            there = self.index.rows_of([*last, *deletes])
            gone = {name for name in deletes if name in there}
            # Numbers of the last of each id, so that the records come in the order of the batch.
            written = [Change(records[n].id or "", records[n], vectors[n]) for n in sorted(last.values())]
            changes = [*(Change(name) for name in sorted(gone - last.keys())), *written]
            revision = self.index.state.revision
            if changes:
                try:
                    revision = self._log.append(changes)
                except OSError as error:
                    raise ArtifactError(
                        f"{self._updates} could not be written: {os.strerror(error.errno or 0)}; nothing of "
                        "the batch was, and what was written before is there"
                    ) from error
                self.index.apply(changes, revision)
        replaced = sum(name in there and name not in gone for name in last)
        return Applied(len(last) - replaced, replaced, len(gone), len(records) - len(last), revision)

    def compact(self) -> bool:
        """Write the index and its updates into a new index, in the place of both.

        Searches and updates go on meanwhile. ``index`` is the new one afterwards, and the one from before is
        closed: nobody may search in it.

        Returns:
            Whether there was anything to compact.

        Raises:
            CognateError: The disk is full or fails, or the kind of index cannot be built from what is left.
                All is as it was.
        """
        base = self.write_base()
        if base is None:
            return False
        before = self.index
        self.switch_to(base)
        before.close()
        return True

    def write_base(self) -> Base | None:
        """Write a new index of all that there is now: the long part of a compaction. Others go on meanwhile.

        Returns:
            None where nothing has changed since the last.

        Raises:
            CognateError: As ``compact``.
        """
        with self._compacting:
            self._check_open()
            index = self.index
            if not index.changed:
                return None
            revision, rows = index.revision_and_rows()
            name = f"base-{revision}"
            with (
                publishing(self._updates / name, IndexManifest.KIND, force=True) as partial,
                IndexWriter(partial, index.dimension, _layout_of(index.manifest)) as writer,
            ):
                for start in range(0, len(rows), CHUNK):
                    self._check_open()
                    some = rows[start : start + CHUNK].tolist()
                    writer.add(index.records(some), index.vectors(some))
                writer.finish(index.manifest)
            state = State(index.state.root_version, name, version_of(self._updates / name), revision)
            return Base(UpdatedIndex(self.folder, state, ()), name, revision)

    def switch_to(self, base: Base) -> UpdatedIndex:
        """Put an index that was compacted in the place of the present one: the short part.

        Args:
            base: From ``write_base``.

        Returns:
            The new ``index``, with what was updated since.

        Raises:
            CognateError: The disk is full or fails, or this is closed. All is as it was, and the base closed.
        """
        with self._changing:
            try:
                self._check_open()
                state, changes = self._log.read_after(base.revision)
                base.index.apply(changes, state.revision)
                self._log.rebase(base.name, base.index.version, base.revision)
            except BaseException as error:
                # Its folder is removed by whoever next updates the index.
                base.index.close()
                if isinstance(error, OSError):
                    why = os.strerror(error.errno or 0)
                    raise ArtifactError(f"{self._updates} could not be written: {why}") from error
                raise
            self.index = base.index
            self._remove_all_but(base.name)
            return self.index

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise CognateError(f"the updates of {self.folder} are closed; open them again")

    def _check(
        self, records: Sequence[Record], vectors: NDArray[np.float32], fingerprint: str | None
    ) -> None:
        manifest = self.index.manifest
        if fingerprint is not None and fingerprint != manifest.fingerprint:
            raise FingerprintError(
                f"the vectors are of another bundle (fingerprint {fingerprint[:12]}) than those of "
                f"{self.folder} ({manifest.model}, {manifest.fingerprint[:12]}); encode with that one"
            )
        check_batch(records, vectors, manifest.dimension)

    def _remove_all_but(self, base: str) -> None:
        """Remove indexes that are no longer, or never were, the base; who has one open can still read it."""
        for folder in self._updates.iterdir():
            if folder.is_dir() and folder.name != base and folder.name.startswith(("base-", ".base-")):
                shutil.rmtree(folder, ignore_errors=True)


def check_batch(records: Sequence[Record], vectors: NDArray[np.float32], dimension: int) -> None:
    """Refuse records that cannot be written to an index of a dimension.

    Raises:
        CognateError: A record has no id or one that is too long, or a vector is not of the dimension or not
            finite.
    """
    if vectors.shape != (len(records), dimension):
        raise CognateError(
            f"the vectors have shape {vectors.shape}; {len(records)} records of this index need "
            f"({len(records)}, {dimension})"
        )
    for number, record in enumerate(records):
        if not record.id:
            raise CognateError(f"record {number} has no id; what is written to an index needs one")
        if len(record.id.encode()) > MAX_ID_BYTES:
            raise CognateError(f"record {number} has an id of over {MAX_ID_BYTES} bytes; shorten it")
        attributes_text(record, f"record {number}")
    if not np.isfinite(vectors).all():
        raise CognateError("a vector has a component that is not finite")


def _check_root(folder: Path, version: str, state: State) -> None:
    if version != state.root_version:
        raise ArtifactError(
            f"{folder} was built again as version {version}, and {updates_folder(folder)} holds updates of "
            f"version {state.root_version}; put that version back, or delete those updates"
        )


def _layout_of(manifest: IndexManifest) -> Layout:
    """The layout to build an index again with, so that it stays of its kind; cagra, without a GPU, hnsw."""
    recall = manifest.recall_target or Layout().recall
    if manifest.kind == "factory":
        return Layout(factory=str(manifest.parameters["factory"]), recall=recall)
    kinds: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
    # The process that compacts need not have the GPU.
    kinds["cagra"] = "hnsw"
    storages: dict[str, Storage] = {"fp16": "fp16", "int8": "int8"}
    return Layout(kinds[manifest.kind], storages.get(manifest.storage, "fp32"), None, recall)
