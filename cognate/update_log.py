"""What was written to an index and deleted from it since it was built: a file of SQLite's, beside the index.

SQLite, since its write-ahead log is what is needed: a batch is one transaction, on the disk before it is
answered; what a killed process left half-written is dropped when the file is next opened. It also lets other
processes read while one writes. A later change of a record takes the place of an earlier one.
"""

import errno
import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cognate.errors import ArtifactError
from cognate.records import Record

LOG = "updates.sqlite"
FORMAT_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (
    one INTEGER PRIMARY KEY CHECK (one = 1), format_version INTEGER NOT NULL, root_version TEXT NOT NULL,
    base TEXT NOT NULL, base_version TEXT NOT NULL, revision INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS changes (
    id TEXT NOT NULL UNIQUE, revision INTEGER NOT NULL, text TEXT, label TEXT, attributes TEXT, vector BLOB,
    checksum INTEGER NOT NULL
);
"""


class State(NamedTuple):
    """What the changes come on top of.

    Attributes:
        root_version: ``Index.version`` of the index that was updated first.
        base: The folder, beside the log, of the index that the changes are of now; empty: that first one.
        base_version: Its version.
        revision: How many batches there were.
    """

    root_version: str
    base: str
    base_version: str
    revision: int


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What became of a record.

    Attributes:
        id: The record's.
        record: As it is now. None: it was deleted.
        vector: float32, shape (dimension,), unit length; None where there is no record.
    """

    id: str
    record: Record | None = None
    vector: NDArray[np.float32] | None = None


def read_log(folder: Path) -> tuple[State, list[Change]] | None:
    """Read a log, all of it as it is at one moment, whoever writes to it.

    Args:
        folder: The one that it is in.

    Returns:
        None where there is none.

    Raises:
        ArtifactError: It is damaged, or newer than this cognate.
    """
    path = folder / LOG
    if not path.exists():
        return None
    with _damage_told(path), closing(_connect(path, "ro")) as connection:
        connection.execute("BEGIN")
        return _read(connection, path)


def read_state(folder: Path) -> State | None:
    """Read the state of a log, without its changes.

    Args:
        folder: The one that it is in.

    Returns:
        None where there is no log.

    Raises:
        ArtifactError: It is damaged, or newer than this cognate.
    """
    path = folder / LOG
    if not path.exists():
        return None
    with _damage_told(path), closing(_connect(path, "ro")) as connection:
        return _read_state(connection, path)


class UpdateLog:
    """A log that is written to, by one process and one thread at a time."""

    def __init__(self, folder: Path, state: State) -> None:
        """Open a log, or begin one.

        Args:
            folder: The one that it is in.
            state: Of a new log.

        Raises:
            ArtifactError: It is damaged, newer than this cognate, or cannot be written.
        """
        self._path = folder / LOG
        with _damage_told(self._path):
            self._connection = _connect(self._path, "rwc")
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                # The log is flushed to the disk with each transaction, not only now and then.
                self._connection.execute("PRAGMA synchronous = FULL")
                if _read_state(self._connection, self._path) is None:
                    with self._transaction():
                        for statement in filter(str.strip, _SCHEMA.split(";")):
                            self._connection.execute(statement)
                        self._connection.execute(
                            "INSERT INTO state VALUES (1, ?, ?, ?, ?, ?)", (FORMAT_VERSION, *state)
                        )
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Close it; at rest it is one file, which a read-only disk may hold."""
        try:
            self._connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:
            pass  # Somebody reads it, or the disk is full: it is as good with its journal beside it.
        finally:
            self._connection.close()

    def read_after(self, revision: int) -> tuple[State, list[Change]]:
        """Read the state, and the changes of the batches after the one of that number.

        Raises:
            ArtifactError: It is damaged.
        """
        with _damage_told(self._path):
            found = _read(self._connection, self._path, revision)
        if found is None:
            raise ArtifactError(f"{self._path} holds no log; put back a copy of its folder")
        return found

    def append(self, changes: Sequence[Change]) -> int:
        """Write a batch: all of it or nothing, on the disk once this returns.

        Args:
            changes: Each of another record.

        Returns:
            The revision that the batch makes.

        Raises:
            OSError: The disk is full or fails; nothing was written.
        """
        with self._transaction():
            self._connection.execute("UPDATE state SET revision = revision + 1")
            (revision,) = self._connection.execute("SELECT revision FROM state").fetchone()
            self._connection.executemany(
                "INSERT OR REPLACE INTO changes VALUES (?, ?, ?, ?, ?, ?, ?)",
                [_row(change, revision) for change in changes],
            )
        return int(revision)

    def rebase(self, base: str, base_version: str, revision: int) -> None:
        """Let the changes come on top of another index, which holds those up to a revision already.

        Args:
            base: Its folder, beside the log.
            base_version: Its version.
            revision: The last that it holds; its changes and those before are dropped.

        Raises:
            OSError: The disk is full or fails; nothing was written.
        """
        with self._transaction():
            self._connection.execute("UPDATE state SET base = ?, base_version = ?", (base, base_version))
            self._connection.execute("DELETE FROM changes WHERE revision <= ?", (revision,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
                raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
            raise


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def _read_state(connection: sqlite3.Connection, path: Path) -> State | None:
    # A process that was killed while it made the file may have left an empty one.
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'state'").fetchone():
        return None
    version, *state = connection.execute(
        "SELECT format_version, root_version, base, base_version, revision FROM state"
    ).fetchone()
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format {version}, newer than the {FORMAT_VERSION} that this cognate reads; "
            "upgrade cognate"
        )
    return State(*state)


def _read(connection: sqlite3.Connection, path: Path, after: int = 0) -> tuple[State, list[Change]] | None:
    state = _read_state(connection, path)
    if state is None:
        return None
    rows = connection.execute(
        "SELECT id, revision, text, label, attributes, vector, checksum FROM changes WHERE revision > ? "
        "ORDER BY revision, rowid",
        (after,),
    )
    changes = []
    for row in rows:
        if _checksum(row[:-1]) != row[-1]:
            raise ArtifactError(
                f"{path} was altered: the checksum of record {row[0]!r} is not its own; "
                "put back a copy of its folder"
            )
        changes.append(_change(*row[:-1]))
    return state, changes


def _row(change: Change, revision: int) -> tuple[Any, ...]:
    record = change.record
    row: tuple[Any, ...]
    if record is None or change.vector is None:
        row = (change.id, revision, None, None, None, None)
    else:
        attributes = None if record.attributes is None else json.dumps(record.attributes, ensure_ascii=False)
        vector = np.ascontiguousarray(change.vector, "<f4").tobytes()
        row = (change.id, revision, record.text, record.label, attributes, vector)
    return (*row, _checksum(row))


def _change(
    identifier: str,
    _revision: int,
    text: str | None,
    label: str | None,
    attributes: str | None,
    vector: bytes | None,
) -> Change:
    if text is None or vector is None:
        return Change(identifier)
    parsed = None if attributes is None else json.loads(attributes)
    return Change(identifier, Record(text, label, identifier, parsed), np.frombuffer(vector, "<f4"))


def _checksum(row: Sequence[Any]) -> int:
    checksum = 0
    for value in row:
        part = value if isinstance(value, bytes) else str("" if value is None else value).encode()
        # Its kind and length first, so that nothing can move from one column to the next.
        kind = b"-" if value is None else b"+"
        checksum = zlib.crc32(part, zlib.crc32(b"%b%d:" % (kind, len(part)), checksum))
    return checksum


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}") from error
    except sqlite3.OperationalError as error:
        raise ArtifactError(f"{path} cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ArtifactError(f"{path} is damaged: {error}; put back a copy of its folder") from error
