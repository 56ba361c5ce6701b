"""The vectors and records of an index as a file that other systems read."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from cognate.errors import ArtifactError, CognateError
from cognate.index import Index
from cognate.records import Record
from cognate.updates import open_index

FORMATS = (".parquet", ".arrow", ".npy")
ROWS = 4096
"""Records that are in memory at a time; also of a batch or row group of the file."""

Chunks = Iterator[tuple[list[Record], NDArray[np.float32]]]


def export(index: str | Path, destination: str | Path, *, force: bool = False) -> list[Path]:
    """Write an index's vectors and records to a file, by the ending of its name.

    ``.parquet`` and ``.arrow`` (the Arrow IPC file format): columns id, text, label, attributes (JSON, as a
    string) and vector (float32, a list of fixed size); what the index says of its model is in the schema's
    metadata. ``.npy``: the vectors alone, float32 of shape (records, dimension), and the records in the same
    order as JSON Lines in a file of the same name with ``.jsonl``.

    Args:
        index: The index's folder.
        destination: The file. It is written beside, and renamed when whole.
        force: Whether a file that is there is replaced.

    Returns:
        The files that were written.

    Raises:
        CognateError: Another ending, a file that is there, an index that is missing or damaged, or a disk
            that is full.
    """
    destination = Path(destination)
    if destination.suffix not in FORMATS:
        raise CognateError(f"{destination} has none of the endings {', '.join(FORMATS)}; give one that has")
    paths = [destination]
    if destination.suffix == ".npy":
        paths.append(destination.with_suffix(".jsonl"))
    for path in paths:
        if path.exists() and not force:
            raise CognateError(f"{path} exists; give another --out, or --force to replace it")
    with contextlib.closing(open_index(index, device="cpu")) as opened:
        if len(paths) == 1:
            writers: list[Callable[[Path, Index], None]] = [
                _write_parquet if destination.suffix == ".parquet" else _write_arrow
            ]
        else:
            writers = [_write_npy, _write_json_lines]
        with contextlib.ExitStack() as stack:
            for path, write in zip(paths, writers, strict=True):
                write(stack.enter_context(_publishing(path)), opened)
    return paths


@contextlib.contextmanager
def _publishing(path: Path) -> Iterator[Path]:
    """Give the name of a file to write, which takes the path's place when whole, or goes."""
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".partial", dir=path.absolute().parent
        )
        os.close(descriptor)
        partial = Path(name)
        try:
            yield partial
            partial.chmod(0o644)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ArtifactError(f"{path} could not be written: {reason}") from error


def _chunks(index: Index) -> Chunks:
    all_rows = index.all_rows()
    for start in range(0, len(all_rows), ROWS):
        rows = all_rows[start : start + ROWS].tolist()
        yield index.records(rows), index.vectors(rows)


def _schema(index: Index) -> Any:
    manifest = index.manifest
    return pyarrow.schema(
        [
            pyarrow.field("id", pyarrow.string(), nullable=False),
            pyarrow.field("text", pyarrow.string(), nullable=False),
            pyarrow.field("label", pyarrow.string()),
            pyarrow.field("attributes", pyarrow.string()),
            pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), index.dimension), nullable=False),
        ],
        {"model": manifest.model, "fingerprint": manifest.fingerprint, "metric": manifest.metric},
    )


def _batches(index: Index) -> Iterator[Any]:
    schema = _schema(index)
    for records, vectors in _chunks(index):
        yield pyarrow.record_batch(
            [
                pyarrow.array([record.id for record in records], pyarrow.string()),
                pyarrow.array([record.text for record in records], pyarrow.string()),
                pyarrow.array([record.label for record in records], pyarrow.string()),
                pyarrow.array([_attributes(record) for record in records], pyarrow.string()),
                pyarrow.FixedSizeListArray.from_arrays(
                    pyarrow.array(vectors.ravel()), type=schema.field("vector").type
                ),
            ],
            schema=schema,
        )


def _attributes(record: Record) -> str | None:
    return None if record.attributes is None else json.dumps(record.attributes, ensure_ascii=False)


def _write_parquet(path: Path, index: Index) -> None:
    # Vectors do not repeat, so a dictionary of them would only take memory.
    columns = ["id", "text", "label", "attributes"]
    with (
        path.open("wb") as file,
        pyarrow.parquet.ParquetWriter(file, _schema(index), use_dictionary=columns) as writer,
    ):
        for batch in _batches(index):
            writer.write_batch(batch)


def _write_arrow(path: Path, index: Index) -> None:
    with path.open("wb") as file, pyarrow.ipc.new_file(file, _schema(index)) as writer:
        for batch in _batches(index):
            writer.write_batch(batch)


def _write_npy(path: Path, index: Index) -> None:
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (index.count, index.dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        for _, vectors in _chunks(index):
            file.write(np.ascontiguousarray(vectors, "<f4").tobytes())


def _write_json_lines(path: Path, index: Index) -> None:
    with path.open("w", encoding="utf-8") as file:
        for records, _ in _chunks(index):
            for record in records:
                fields = msgspec.structs.asdict(record)
                known = {key: value for key, value in fields.items() if value is not None}
                file.write(json.dumps(known, ensure_ascii=False) + "\n")
