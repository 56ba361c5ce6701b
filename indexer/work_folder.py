"""What an index job has done so far, on disk, so that it can be killed at any moment and go on."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cognate.errors import ArtifactError, CognateError
from cognate.records import Record

VECTORS = "vectors.f32"
JOURNAL = "job.sqlite"

_SCHEMA = """
CREATE TABLE job (settings TEXT NOT NULL);
CREATE TABLE progress (records INTEGER NOT NULL, read_sha256 TEXT NOT NULL);
CREATE TABLE records (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL, text TEXT NOT NULL, label TEXT, attributes TEXT,
    replaced INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX records_by_id ON records (id) WHERE replaced = 0;
CREATE TABLE texts (digest BLOB PRIMARY KEY, row INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE old_texts (digest BLOB PRIMARY KEY, row INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Chunk:
    """Records that are encoded and committed together.

    Attributes:
        records: In the order of the source.
        new: The positions of the records whose texts must be encoded, each text once.
        same: Of other positions: the position in this chunk that has the same text.
        earlier: Of other positions: the row of this job that has the same text.
        old: Of other positions: the row of the index to reuse that has the same text.
        read_sha256: Of all that was read of the source up to the end of this chunk.
    """

    records: Sequence[Record]
    new: Sequence[int]
    same: Mapping[int, int]
    earlier: Mapping[int, int]
    old: Mapping[int, int]
    read_sha256: str

    @property
    def new_texts(self) -> list[str]:
        """What must be encoded."""
        return [self.records[position].text for position in self.new]


class WorkFolder:
    """The work folder of a job: vectors in a file that grows, and all else in SQLite.

    A chunk's vectors are appended and fsynced first, then one transaction, fsynced too, adds its records and
    says how far the job is. Vectors past what the journal says are cut off when the folder is opened. Its
    SQLite is locked for as long as it is open, so that no second job writes here.

    Attributes:
        path: Where it is.
        count: Records that are committed, and will be there whatever happens.
        read_sha256: Of what was read of the source up to there.
        replaced: Of them, those that a later one with the same id took the place of.
    """

    def __init__(self, path: Path, dimension: int, settings: Mapping[str, str]) -> None:
        """Open the work folder of an interrupted job, or make one.

        Args:
            path: Where it is or shall be; its parent exists.
            dimension: Components of a vector.
            settings: What must be the same for the job to go on, by name, in words for people.

        Raises:
            CognateError: Another process works there, what is there is of a job with other settings, or it
                is damaged.
            OSError: The disk is full or fails.
        """
        self.path = path
        self._dimension = dimension
        path.mkdir(exist_ok=True)
        self._journal = _lock(path / JOURNAL)
        try:
            with _sqlite_errors(path):
                tables = self._journal.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                if not tables:
                    self._create(settings)
                else:
                    _check_same(json.loads(self._one("SELECT settings FROM job")[0]), settings)
                self.count, self.read_sha256 = self._one("SELECT records, read_sha256 FROM progress")
                self.replaced = self._one("SELECT count(*) FROM records WHERE replaced")[0]
            # Of chunks that are planned and not yet staged: the row of each text; where the next plan begins.
            self._planned: dict[bytes, int] = {}
            self._planned_rows: int = self.count
            self._vectors = (path / VECTORS).open("a+b")
            size = self.count * dimension * 4
            if os.fstat(self._vectors.fileno()).st_size < size:
                raise CognateError(f"{path / VECTORS} was cut short; give --restart to begin the job anew")
            self._vectors.truncate(size)
            # A power cut must not lose the names of the files either.
            folder = os.open(path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except BaseException:
            self._journal.close()
            raise

    def __enter__(self) -> Self:
        """Return the folder."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of it: what was committed stays, unless nothing was."""
        self._vectors.close()
        if not self.count:
            shutil.rmtree(self.path, ignore_errors=True)
        self._journal.close()

    def _create(self, settings: Mapping[str, str]) -> None:
        statements = _SCHEMA.strip().split(";\n")
        self._journal.execute("BEGIN")
        for statement in statements:
            self._journal.execute(statement)
        self._journal.execute("INSERT INTO job VALUES (?)", (json.dumps(settings),))
        self._journal.execute("INSERT INTO progress VALUES (0, ?)", (hashlib.sha256().hexdigest(),))
        self._journal.execute("COMMIT")

    def _one(self, query: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._journal.execute(query).fetchone()
        return row

    def add_old_texts(self, texts: Iterable[str]) -> None:
        """Remember the texts of an index to reuse, before the first chunk.

        Args:
            texts: In the order of its rows.
        """
        with _sqlite_errors(self.path):
            self._journal.execute("BEGIN")
            self._journal.executemany(
                "INSERT OR IGNORE INTO old_texts VALUES (?, ?)",
                ((_digest(text), row) for row, text in enumerate(texts)),
            )
            self._journal.execute("COMMIT")

    def plan(self, records: Sequence[Record], read_sha256: str) -> Chunk:
        """Find out which texts of a chunk must be encoded, and where the vectors of the others are.

        Args:
            records: The next ones, after those that were planned before. Chunks are staged and committed in
                the order in which they were planned, and several may wait for that.
            read_sha256: Of all that was read of the source up to the last of them.
        """
        new: list[int] = []
        first: dict[bytes, int] = {}
        same, earlier, old, planned = {}, {}, {}, {}
        with _sqlite_errors(self.path):
            for position, record in enumerate(records):
                digest = _digest(record.text)
                if digest in first:
                    same[position] = first[digest]
                    continue
                first[digest] = position
                row = self._planned.get(digest)
                if row is not None or (row := self._row("texts", digest)) is not None:
                    earlier[position] = row
                    continue
                if (row := self._row("old_texts", digest)) is not None:
                    old[position] = row
                else:
                    new.append(position)
                planned[digest] = self._planned_rows + position
        self._planned.update(planned)
        self._planned_rows += len(records)
        return Chunk(records, new, same, earlier, old, read_sha256)

    def _row(self, table: str, digest: bytes) -> int | None:
        found = self._journal.execute(f"SELECT row FROM {table} WHERE digest = ?", (digest,)).fetchone()  # noqa: S608
        return None if found is None else found[0]

    def stage(self, chunk: Chunk, *, replace: bool) -> None:
        """Add a chunk's records to a transaction that ``commit`` ends; what is not committed is forgotten.

        Args:
            chunk: The next one.
            replace: Whether a record takes the place of an earlier one with the same id.

        Raises:
            CognateError: An id occurs twice, and is not to be replaced.
            OSError: The disk is full or fails.
        """
        with _sqlite_errors(self.path):
            self._journal.execute("BEGIN")
            for row, record in enumerate(chunk.records, self.count):
                identifier = str(row) if record.id is None else record.id
                if replace:
                    self.replaced += self._journal.execute(
                        "UPDATE records SET replaced = 1 WHERE id = ? AND replaced = 0", (identifier,)
                    ).rowcount
                attributes = (
                    None if record.attributes is None else json.dumps(record.attributes, ensure_ascii=False)
                )
                try:
                    self._journal.execute(
                        "INSERT INTO records VALUES (?, ?, ?, ?, ?, 0)",
                        (row, identifier, record.text, record.label, attributes),
                    )
                except sqlite3.IntegrityError:
                    raise CognateError(
                        f"record {row + 1} has the id {identifier!r}, which an earlier record has (a record "
                        "without an id is numbered from 0); give every record an id of its own, or "
                        "--on-duplicate last to keep the last one of each id"
                    ) from None
            texts = [
                (_digest(chunk.records[position].text), self.count + position)
                for position in (*chunk.new, *chunk.old)
            ]
            self._journal.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?)", texts)
        for digest, _ in texts:
            del self._planned[digest]

    def commit(self, chunk: Chunk, new: NDArray[np.float32], old: NDArray[np.float32] | None = None) -> None:
        """Make the staged chunk last: once this returns, no kill or power cut loses it.

        Args:
            chunk: The one that was staged.
            new: float32, shape (chunk.new, dimension): the vectors of its new texts.
            old: float32, shape (chunk.old, dimension): those from the index to reuse.

        Raises:
            CognateError: A vector is not finite.
            OSError: The disk is full or fails.
        """
        vectors = np.empty((len(chunk.records), self._dimension), "<f4")
        vectors[list(chunk.new)] = new
        if old is not None:
            vectors[list(chunk.old)] = old
        if chunk.earlier:
            vectors[list(chunk.earlier)] = self._mapped()[list(chunk.earlier.values())]
        vectors[list(chunk.same)] = vectors[list(chunk.same.values())]
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            position = int(np.argmin(finite))
            raise CognateError(
                f"the model's vector of record {self.count + position + 1} "
                f"({chunk.records[position].text[:60]!r}) has a component that is not finite; export the "
                "model again, and in float32 if it was in another precision"
            )
        self._vectors.write(vectors.tobytes())
        self._vectors.flush()
        os.fsync(self._vectors.fileno())
        count = self.count + len(chunk.records)
        with _sqlite_errors(self.path):
            self._journal.execute(
                "UPDATE progress SET records = ?, read_sha256 = ?", (count, chunk.read_sha256)
            )
            self._journal.execute("COMMIT")
        self.count, self.read_sha256 = count, chunk.read_sha256

    def chunks(self, size: int) -> Iterator[tuple[list[Record], NDArray[np.float32]]]:
        """All that is committed and was not replaced, in order.

        Args:
            size: Records at a time.

        Yields:
            Records, and their vectors: float32, shape (records, dimension).
        """
        if not self.count:
            return
        vectors = self._mapped()
        cursor = self._journal.execute(
            "SELECT row, id, text, label, attributes FROM records WHERE replaced = 0 ORDER BY row"
        )
        while rows := cursor.fetchmany(size):
            records = [
                Record(text, label, identifier, None if attributes is None else json.loads(attributes))
                for _, identifier, text, label, attributes in rows
            ]
            yield records, vectors[[row[0] for row in rows]]

    def _mapped(self) -> NDArray[np.float32]:
        return np.memmap(self.path / VECTORS, "<f4", "r", shape=(self.count, self._dimension))


def discard(path: Path) -> None:
    """Remove the work folder of an interrupted job.

    Raises:
        CognateError: A process works there.
        OSError: It cannot be removed.
    """
    if not path.exists():
        return
    if (path / JOURNAL).exists():
        with contextlib.suppress(ArtifactError), contextlib.closing(_lock(path / JOURNAL)):
            pass
    shutil.rmtree(path)


def _lock(path: Path) -> sqlite3.Connection:
    """Open the journal for this process alone; the system lets go of it when the process ends, however."""
    journal = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        with _sqlite_errors(path.parent):
            journal.execute("PRAGMA locking_mode = EXCLUSIVE")
            journal.execute("PRAGMA journal_mode = WAL")
            journal.execute("PRAGMA synchronous = FULL")
            journal.execute("BEGIN EXCLUSIVE")
            journal.execute("COMMIT")
    except BaseException:
        journal.close()
        raise
    return journal


@contextlib.contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite says of the disk, a lock or damage into an OSError or a sentence."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            raise CognateError(f"another process is at work in {path}; wait until it ends") from None
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if isinstance(error, sqlite3.OperationalError):
            raise OSError(errno.EIO, str(error)) from error
        raise ArtifactError(f"{path} is damaged ({error}); give --restart to begin the job anew") from None


def _check_same(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    for name in [*then, *now]:
        if then.get(name) != now.get(name):
            before, after = then.get(name, "none"), now.get(name, "none")
            raise CognateError(
                f"the job that was interrupted had another {name} ({before}) than this one ({after}); "
                "give what it had to go on with it, or --restart to begin anew"
            )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
