"""The records of an index by row: a file of JSON Lines, and one of where each line begins, both mapped.

The first is a record file as any other. The second holds count + 1 numbers, uint64, little-endian.
"""

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from msgspec.structs import force_setattr
from numpy.typing import NDArray

from cognate.errors import ArtifactError
from cognate.records import Hit, Record

RECORDS = "records.jsonl"
OFFSETS = "records.offsets"

Read = TypeVar("Read")


class _Line(msgspec.Struct, omit_defaults=True):
    text: str
    label: str | None = None
    id: str | None = None
    attributes: msgspec.Raw | None = None


_encode = msgspec.json.Encoder().encode


def line(record: Record, identifier: str, attributes: str | None) -> bytes:
    """A record as a line of the file, with the id that it has there; its attributes are JSON already."""
    raw = None if attributes is None else msgspec.Raw(attributes.encode())
    return _encode(_Line(record.text, record.label, identifier, raw)) + b"\n"


class RecordFileWriter:
    """Writes both files as lines come, and holds none of them."""

    def __init__(self, folder: Path) -> None:
        """Begin them in a folder."""
        self._records = (folder / RECORDS).open("wb")
        self._offsets = (folder / OFFSETS).open("wb")
        self._offsets.write(bytes(8))

    def add(self, lines: Sequence[bytes]) -> None:
        """Append lines."""
        ends = np.cumsum([self._records.tell(), *map(len, lines)], dtype="<u8")[1:]
        self._records.writelines(lines)
        self._offsets.write(ends.tobytes())

    def close(self) -> None:
        """Close them."""
        self._records.close()
        self._offsets.close()


class RecordFile:
    """Reads both files. Safe to use from several threads."""

    def __init__(self, folder: Path, count: int) -> None:
        """Map them.

        Args:
            folder: Where they are.
            count: How many records there must be.

        Raises:
            ArtifactError: There are not as many, or the two files do not fit.
        """
        self._path = folder / RECORDS
        try:
            self._lines, offsets = _mapped(self._path), _mapped(folder / OFFSETS)
        except OSError as error:
            raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}") from error
        fits = len(offsets) == 8 * (count + 1)
        if fits:
            edges = np.frombuffer(offsets, "<u8")
            self._starts, self._ends = edges[:-1], edges[1:]
            fits = int(edges[-1]) == len(self._lines)
        if not fits:
            raise ArtifactError(f"{self._path} does not fit its manifest; build the index again")
        self._records_of = msgspec.json.Decoder(Record).decode_lines
        self._hits_of = msgspec.json.Decoder(Hit).decode_lines

    def records(self, rows: Sequence[int]) -> list[Record]:
        """The records of rows, in their order.

        Raises:
            ArtifactError: What is there is no record.
        """
        return self._decoded(np.asarray(rows, np.int64), self._records_of)

    def hits(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> list[Hit]:
        """The records of rows with their scores, in their order.

        Raises:
            ArtifactError: What is there is no record.
        """
        hits = self._decoded(rows, self._hits_of)
        for hit, score in zip(hits, scores.tolist(), strict=True):
            # Nobody has seen it yet. To make hits of records would take as long as reading half of them.
            force_setattr(hit, "score", score)
        return hits

    def _decoded(self, rows: NDArray[np.int64], decode: Callable[[bytes], list[Read]]) -> list[Read]:
        lines = self._lines
        starts, ends = self._starts[rows].tolist(), self._ends[rows].tolist()
        text = b"".join([lines[start:end] for start, end in zip(starts, ends, strict=True)])
        try:
            # All at once: line by line takes longer.
            decoded = decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(
                f"{self._path} holds what is no record: {error}; build the index again"
            ) from None
        if len(decoded) != len(rows):
            raise ArtifactError(f"{self._path} holds what is no record; build the index again")
        return decoded

    def close(self) -> None:
        """Unmap them."""
        self._starts = self._ends = np.empty(0, "<u8")
        if isinstance(self._lines, mmap.mmap):
            self._lines.close()


def _mapped(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        # Nothing cannot be mapped.
        empty = not path.stat().st_size
        return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
