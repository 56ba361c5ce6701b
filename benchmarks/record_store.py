"""Ways to keep the records of an index: CPU time to fetch ten of random rows, and ten each of 1,000 queries.

The least of 15 rounds.

    pip install --target DIR lmdb && PYTHONPATH=DIR:. python benchmarks/record_store.py [--records N]

Each gives ``Record`` objects, of files in the page cache.
"""

import argparse
import json
import mmap
import sqlite3
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lmdb  # type: ignore[import-not-found]
import msgspec
import numpy as np
import pyarrow
from rich.console import Console
from rich.table import Table

from cognate.record_file import RecordFile, RecordFileWriter, line
from cognate.records import Record, read_records

SAMPLE = Path(__file__).parents[1] / "cognate/sample/index.jsonl"
K = 10
QUERIES = 1000
ROUNDS = 15

Fetch = Callable[[Sequence[int]], list[Record]]
"""Rows to records."""

_raw = json.JSONDecoder().raw_decode


def main() -> None:
    """Write the records each way, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=200_000)
    count = parser.parse_args().records
    texts = [record.text for record in read_records(SAMPLE)]
    random = np.random.default_rng(0)
    few = [random.integers(0, count, K).tolist() for _ in range(QUERIES)]
    many = [row for rows in few for row in rows]

    def records() -> Iterable[Record]:
        for row in range(count):
            yield Record(texts[row % len(texts)], None, str(row), {"share": row * 7919 % 100})

    table = Table("", "ten, µs", "ten of each of 1,000 queries at once, µs a query", "bytes a record")
    for name, way in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            fetch = way(Path(folder), records())
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
            assert [record.id for record in fetch(many)] == [str(row) for row in many]
            alone, together = [], []
            for _ in range(ROUNDS):
                alone.append(cpu(lambda f=fetch: [f(rows) for rows in few]))  # type: ignore[misc]
                together.append(cpu(lambda f=fetch: f(many)))  # type: ignore[misc]
        columns = (1e6 * min(taken) / QUERIES for taken in (alone, together))
        table.add_row(name, *(f"{each:.1f}" for each in columns), f"{size / count:.0f}")
    Console(width=120).print(table)


def cpu(work: Callable[[], Any]) -> float:
    """The CPU time that it takes, in seconds."""
    started = time.process_time()
    work()
    return time.process_time() - started


def sqlite(path: Path, records: Iterable[Record]) -> sqlite3.Connection:
    """Records in a table of SQLite's."""
    connection = sqlite3.connect(path / "records.sqlite")
    connection.execute("CREATE TABLE records (row INTEGER PRIMARY KEY, id, text, label, attributes)")
    connection.executemany(
        "INSERT INTO records VALUES (?, ?, ?, ?, ?)",
        ((row, r.id, r.text, r.label, json.dumps(r.attributes)) for row, r in enumerate(records)),
    )
    connection.execute("CREATE UNIQUE INDEX by_id ON records (id)")
    connection.commit()
    connection.execute("PRAGMA mmap_size = 0x7fff0000").close()
    return connection


def sqlite_in(path: Path, records: Iterable[Record]) -> Fetch:
    """A statement for 500 rows."""
    connection = sqlite(path, records)

    def fetch(rows: Sequence[int]) -> list[Record]:
        found = {}
        wanted = sorted(set(rows))
        for start in range(0, len(wanted), 500):
            some = wanted[start : start + 500]
            marks = ",".join("?" * len(some))
            select = f"SELECT row, id, text, label, attributes FROM records WHERE row IN ({marks})"
            for row, name, text, label, attributes in connection.execute(select, some):
                found[row] = Record(text, label, name, _raw(attributes)[0])
        return [found[row] for row in rows]

    return fetch


def sqlite_each(path: Path, records: Iterable[Record]) -> Fetch:
    """A statement for each row."""
    execute = sqlite(path, records).execute
    select = "SELECT text, label, id, attributes FROM records WHERE row = ?"

    def one(row: int) -> Record:
        text, label, name, attributes = execute(select, (row,)).fetchone()
        return Record(text, label, name, _raw(attributes)[0])

    return lambda rows: [one(row) for row in rows]


def mapped(path: Path, encoded: Iterable[bytes]) -> tuple[memoryview, Any]:
    """A file of records one after another, and where each begins, both mapped."""
    starts = [0]
    with (path / "records.bin").open("wb") as file:
        for each in encoded:
            file.write(each)
            starts.append(file.tell())
    np.save(path / "records.npy", np.array(starts, np.uint64))
    with (path / "records.bin").open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return content, memoryview(np.load(path / "records.npy", "r"))


def file_of(encode: Callable[[Record], bytes], decode: Callable[[Any], Record]) -> Any:
    """A file of records, each encoded in some way."""

    def way(path: Path, records: Iterable[Record]) -> Fetch:
        content, starts = mapped(path, map(encode, records))
        return lambda rows: [decode(content[starts[row] : starts[row + 1]]) for row in rows]

    return way


def to_json(record: Record) -> bytes:
    """As JSON, of a list."""
    return json.dumps(
        [record.text, record.label, record.id, record.attributes], ensure_ascii=False, separators=(",", ":")
    ).encode()


def from_json(content: Any) -> Record:
    """The record of it."""
    return Record(*_raw(str(content, "utf-8"))[0])


PLAIN = struct.Struct("<iii")


def to_plain(record: Record) -> bytes:
    """Three lengths, -1 for none, and then id, label, attributes as JSON and text."""
    parts = [
        None if each is None else each.encode()
        for each in (record.id, record.label, json.dumps(record.attributes))
    ]
    lengths = PLAIN.pack(*(-1 if part is None else len(part) for part in parts))
    return b"".join([lengths, *(part or b"" for part in parts), record.text.encode()])


def from_plain(content: Any) -> Record:
    """The record of it."""
    name, label, attributes = PLAIN.unpack_from(content)
    second = 12 + name
    third = second + label if label > 0 else second
    fourth = third + attributes if attributes > 0 else third
    return Record(
        str(content[fourth:], "utf-8"),
        str(content[second:third], "utf-8") if label >= 0 else None,
        str(content[12:second], "utf-8"),
        _raw(str(content[third:fourth], "utf-8"))[0] if attributes >= 0 else None,
    )


def arrow(path: Path, records: Iterable[Record]) -> Fetch:
    """An Arrow file, mapped."""
    fields = [(r.text, r.label, r.id, json.dumps(r.attributes)) for r in records]
    columns = [pyarrow.array(column, pyarrow.string()) for column in zip(*fields, strict=True)]
    table = pyarrow.table(columns, ["text", "label", "id", "attributes"])
    with pyarrow.ipc.new_file(path / "records.arrow", table.schema) as writer:
        writer.write_table(table)
    table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path / "records.arrow"))).read_all().combine_chunks()

    def fetch(rows: Sequence[int]) -> list[Record]:
        text, label, name, attributes = (column.to_pylist() for column in table.take(rows).columns)
        return [
            Record(*fields, _raw(each)[0])
            for *fields, each in zip(text, label, name, attributes, strict=True)
        ]

    return fetch


def lmdb_msgspec(path: Path, records: Iterable[Record]) -> Fetch:
    """LMDB, by row."""
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Record).decode
    store = lmdb.open(str(path), map_size=1 << 32)
    with store.begin(write=True) as writing:
        for row, record in enumerate(records):
            writing.put(row.to_bytes(8, "big"), encode(record), append=True)

    def fetch(rows: Sequence[int]) -> list[Record]:
        with store.begin(buffers=True) as reading:
            return [decode(reading.get(row.to_bytes(8, "big"))) for row in rows]

    return fetch


def record_file(path: Path, records: Iterable[Record]) -> Fetch:
    """What an index has."""
    writer = RecordFileWriter(path)
    count = 0
    for record in records:
        writer.add([line(record, record.id or "", json.dumps(record.attributes))])
        count += 1
    writer.close()
    return RecordFile(path, count).records


WAYS: dict[str, Callable[[Path, Iterable[Record]], Fetch]] = {
    "SQLite, a statement for 500 rows": sqlite_in,
    "SQLite, a statement a row": sqlite_each,
    "Arrow, mapped": arrow,
    "LMDB, msgspec's MessagePack": lmdb_msgspec,
    "own file, json of the standard library": file_of(to_json, from_json),
    "own file, lengths and UTF-8": file_of(to_plain, from_plain),
    "own file, msgspec's JSON": record_file,
    "own file, msgspec's MessagePack": file_of(
        msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Record).decode
    ),
}

if __name__ == "__main__":
    main()
