"""Records, hits, and the files that records are read from."""

import codecs
import contextlib
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Self

import msgspec

from cognate.errors import CognateError, RecordError

MAX_LINE_BYTES = 16 * 1024 * 1024
"""A longer line of a record file is refused."""

MAX_ID_BYTES = 512
MAX_LABEL_BYTES = 4096
MAX_ATTRIBUTE_DEPTH = 16
"""Levels of objects and lists. Clients of the wire contract cannot parse an answer of twice as many."""

LARGE_INTEGER = "a whole number of more than 64 bits"
"""What attributes cannot have: filters and Milvus take no such number, and an answer may not hold it."""

PARQUET_BATCH = 1024
"""Rows of a Parquet file that are held at a time."""

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
COLUMNS = ("text", "label", "id", "attributes")
STDIN = "-"
EMPTY_TEXT = "the text is empty"
"""The reason of the RecordError of such a record."""

Attributes = Mapping[str, Any]
Row = tuple[int, Mapping[str, object]]

Accuracy = Literal["fast", "balanced", "exact"]
"""How sure a search is to find the nearest records."""


class Record(msgspec.Struct, frozen=True, eq=False, omit_defaults=True, gc=False):
    """A text, and what is known of it.

    Attributes:
        text: What is encoded; not empty.
        label: Records with the same label mean the same. None where there is none.
        id: Its name. None where the file gives none; an index then numbers it.
        attributes: Any JSON object. None where there is none.
    """

    text: str
    label: str | None = None
    id: str | None = None
    attributes: Attributes | None = None


class Hit(msgspec.Struct, frozen=True, gc=False):
    """A record that a search found.

    It has a default for the score so that it can be read from where records are kept, which have none.

    Attributes:
        id: The record's id.
        score: Its cosine similarity with the query, -1 to 1.
        text: Its text; empty where it was left out.
        label: Its label, None where it has none.
        attributes: Its attributes, None where it has none or they were left out.
    """

    id: str
    score: float = 0.0
    text: str = ""
    label: str | None = None
    attributes: Attributes | None = None

    @classmethod
    def of(cls, record: Record, score: float) -> Self:
        """A record with its score."""
        return cls(record.id or "", score, record.text, record.label, record.attributes)


@dataclass
class Rejects:
    """The lines that ``--on-error skip`` passes over, as they are counted and kept.

    Attributes:
        report: Called with each one.
        count: How many there were.
    """

    report: Callable[[RecordError], None]
    count: int = field(default=0)

    def add(self, error: RecordError) -> None:
        """Count a bad line and report it."""
        self.count += 1
        self.report(error)


def read_records(
    source: str | Path,
    *,
    require_label: bool = False,
    rejects: Rejects | None = None,
    stream: IO[bytes] | None = None,
    allow_empty: bool = False,
) -> Iterator[Record]:
    """Read records one by one, never holding the file whole.

    Formats, by the name's ending: ``.jsonl`` (or ``.json``), ``.csv``, ``.tsv``, ``.parquet``; the first
    three also with ``.gz`` or ``.zst`` after it. ``-`` is JSON Lines on standard input. Columns and
    fields other than text, label, id and attributes are passed over. A label or an id that is a whole
    number is taken as its digits. In CSV and TSV the attributes are a JSON object in a column.

    Args:
        source: A path, or ``-``.
        require_label: Whether a record without a label is bad.
        rejects: Takes the bad lines; without it the first one raises.
        stream: What to read instead of a file of that name, which then tells the format alone.
        allow_empty: Whether a file may have no records.

    Yields:
        Records in the file's order.

    Raises:
        RecordError: A bad line, where no ``rejects`` takes it; or one after which the rest cannot be
            read, such as invalid UTF-8 in a CSV file.
        CognateError: The file is not there, is a folder, is of no known format, or has no records.
    """
    for _, record in read_numbered_records(
        source, require_label=require_label, rejects=rejects, stream=stream, allow_empty=allow_empty
    ):
        yield record


def read_numbered_records(
    source: str | Path,
    *,
    require_label: bool = False,
    require_id: bool = False,
    rejects: Rejects | None = None,
    stream: IO[bytes] | None = None,
    allow_empty: bool = False,
) -> Iterator[tuple[int, Record]]:
    """Read records as ``read_records`` does, each with its line: in Parquet its row, both from 1.

    Args:
        source: As ``read_records``, and so are the others.
        require_label: Whether a record without a label is bad.
        require_id: Whether one without an id is.
        rejects: Takes the bad lines.
        stream: Read this in place of the source, which then is its name.
        allow_empty: Whether a source without any row is one.
    """
    name = "<stdin>" if str(source) == STDIN else str(source)
    found = allow_empty
    for line, row in _rows(source, name, rejects, stream):
        found = True
        try:
            record = parse_record(row, require_label=require_label, require_id=require_id)
        except ValueError as error:
            refused = RecordError(name, line, str(error))
            if rejects is None:
                raise refused from None
            rejects.add(refused)
            continue
        yield line, record
    if not found and not (rejects and rejects.count):
        raise CognateError(f"{name} has no records; give a file with at least one")


def read_rows(source: str | Path) -> Iterator[Row]:
    """Read the rows of a file in a format of ``read_records``, whatever its columns are.

    Args:
        source: A path.

    Yields:
        The line, in Parquet the row, from 1, and the values by column.

    Raises:
        RecordError: A line that cannot be read.
        CognateError: The file is not there, is a folder or is of no known format.
    """
    name = str(source)
    _check_file(Path(source), name)
    form = _format(name)
    if form == ".parquet":
        yield from _parquet_rows(Path(source), name, None)
        return
    with _open(source, name) as file:
        if form not in (".csv", ".tsv"):
            yield from _json_rows(file, name, None)
            return
        rows = _cells(file, name, "\t" if form == ".tsv" else ",")
        _, header = next(rows, (1, []))
        for number, cells in rows:
            if len(cells) != len(header):
                reason = f"{len(cells)} columns where the header has {len(header)}"
                raise RecordError(name, number, reason)
            yield number, dict(zip(header, cells, strict=True))


def read_tables(source: str | Path) -> Iterator[tuple[int, Sequence[str]]]:
    """Read the lines of a CSV or TSV file (also ``.gz``, ``.zst``), as they stand, header included.

    Args:
        source: A path.

    Yields:
        The line's number, from 1, and its cells.

    Raises:
        RecordError: A line that cannot be read.
        CognateError: As ``read_records``.
    """
    name = str(source)
    _check_file(Path(source), name)
    form = _format(name)
    if form not in (".csv", ".tsv"):
        raise CognateError(f"{name} is neither .csv nor .tsv (nor one of them with .gz or .zst)")
    with _open(source, name) as file:
        yield from _cells(file, name, "\t" if form == ".tsv" else ",")


def _format(name: str) -> str:
    bare = name.lower()
    for compression in COMPRESSIONS:
        bare = bare.removesuffix(compression)
    ending = Path(bare).suffix
    if ending not in FORMATS:
        raise CognateError(
            f"{name} has no ending that says its format; known: {', '.join(FORMATS)}, "
            f"the text ones also with {' or '.join(COMPRESSIONS)}"
        )
    return ending


def _rows(source: str | Path, name: str, rejects: Rejects | None, stream: IO[bytes] | None) -> Iterator[Row]:
    if str(source) == STDIN:
        yield from _json_rows(sys.stdin.buffer, name, rejects)
        return
    if stream is None:
        _check_file(Path(source), name)
    form = _format(name)
    if form == ".parquet":
        yield from _parquet_rows(stream or Path(source), name)
        return
    with _open(source, name, stream) as file:
        if form in (".csv", ".tsv"):
            yield from _table_rows(file, name, "\t" if form == ".tsv" else ",", rejects)
        else:
            yield from _json_rows(file, name, rejects)


@contextlib.contextmanager
def _open(source: str | Path, name: str, stream: IO[bytes] | None = None) -> Iterator[IO[bytes]]:
    try:
        with contextlib.nullcontext(stream) if stream else Path(source).open("rb") as raw:
            if name.lower().endswith(".gz"):
                with gzip.open(raw) as file:
                    yield io.BufferedReader(file)
            elif name.lower().endswith(".zst"):
                # Imported here, as for Parquet. Unlike zstandard's reader it refuses a truncated file.
                import pyarrow

                with pyarrow.CompressedInputStream(raw, "zstd") as file:
                    yield io.BufferedReader(file)
            else:
                yield raw
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise CognateError(f"{name} cannot be read: {error.strerror}") from error
        raise CognateError(f"{name} cannot be decompressed: {error}; fetch or write it again") from error


def _check_file(path: Path, name: str) -> None:
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError as error:
        raise CognateError(f"{name} cannot be read: {error.strerror}") from None
    if is_folder:
        raise CognateError(f"{name} is a folder; give a file of records")
    if not exists:
        raise CognateError(f"{name} does not exist; give a file of records")


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise RecordError(name, number, f"the line is longer than {MAX_LINE_BYTES} bytes")
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _json_rows(file: IO[bytes], name: str, rejects: Rejects | None) -> Iterator[Row]:
    for number, line in _lines(file, name):
        if not line.strip():
            continue
        try:
            row = _parsed(_decode(line.rstrip()))
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object, found {_type_name(row)}")  # noqa: TRY004
        except ValueError as error:
            refused = RecordError(name, number, str(error))
            if rejects is None:
                raise refused from None
            rejects.add(refused)
            continue
        yield number, row


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("invalid JSON: nested too deep") from None
    except ValueError:
        # The one other thing that json refuses, with advice to programmers.
        raise ValueError(f"a whole number has more than {sys.get_int_max_str_digits():,} digits") from None


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1} of the line") from None


def _cells(file: IO[bytes], name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    read = 0

    def decoded() -> Iterator[str]:
        nonlocal read
        for number, line in _lines(file, name):
            read = number
            yield _decode(line)

    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(decoded(), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = read + 1
    except csv.Error as error:
        raise RecordError(name, start, _csv_reason(error)) from None
    except ValueError as error:
        raise RecordError(name, read, str(error)) from None


def _csv_reason(error: csv.Error) -> str:
    reason = str(error)
    if reason == "unexpected end of data":
        return "a quote that is opened here is never closed"
    if reason.startswith("new-line character"):
        return "a carriage return in a cell without quotes"
    if reason.endswith("expected after '\"'"):
        return f"{reason} that ends a cell; double the quotes inside one"
    return reason


def _table_rows(file: IO[bytes], name: str, delimiter: str, rejects: Rejects | None) -> Iterator[Row]:
    rows = _cells(file, name, delimiter)
    line, header = next(rows, (1, []))
    if header and "text" not in header:
        raise RecordError(name, line, f"the header has no column named text; it has {', '.join(header)}")
    for column in COLUMNS:
        if header.count(column) > 1:
            raise RecordError(name, line, f"the header has more than one column named {column}")
    for number, cells in rows:
        if len(cells) != len(header):
            refused = RecordError(name, number, f"{len(cells)} columns where the header has {len(header)}")
            if rejects is None:
                raise refused
            rejects.add(refused)
            continue
        row: dict[str, object] = dict(zip(header, cells, strict=True))
        # An empty cell of a table is a value that is not there; an empty text is judged as a text.
        yield number, {key: value for key, value in row.items() if value != "" or key == "text"}


def _parquet_rows(path: Path | IO[bytes], name: str, wanted: Sequence[str] | None = COLUMNS) -> Iterator[Row]:
    # Imported here: pyarrow costs 60 MB, and only Parquet files need it.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            there = file.schema_arrow.names
            columns = there if wanted is None else [column for column in wanted if column in there]
            if wanted is not None and "text" not in columns:
                raise CognateError(
                    f"{name} has no column named text; it has {', '.join(file.schema_arrow.names)}"
                )
            for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except UnicodeDecodeError:
        raise RecordError(
            name, number + 1, f"invalid UTF-8 in this row or one of the {PARQUET_BATCH - 1} after it"
        ) from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise CognateError(f"{name} is no readable Parquet file: {str(error).splitlines()[0]}") from None


def parse_record(
    row: Mapping[str, object], *, require_label: bool = False, require_id: bool = False
) -> Record:
    """Check the values of a row, and make a record of them.

    Args:
        row: Values by the names of their columns or fields.
        require_label: Whether a record without a label is bad.
        require_id: Whether one without an id is.

    Raises:
        ValueError: What is wrong with it.
    """
    if row.get("text") is None:
        raise ValueError("there is no text")
    text = row["text"]
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, not {_type_name(text)}")  # noqa: TRY004
    if not text.strip():
        raise ValueError(EMPTY_TEXT)
    _check_unicode("text", text)
    label = _name(row, "label", MAX_LABEL_BYTES)
    if require_label and label is None:
        raise ValueError("there is no label")
    identifier = _name(row, "id", MAX_ID_BYTES)
    if require_id and identifier is None:
        raise ValueError("there is no id")
    return Record(text, label, identifier, _attributes(row.get("attributes")))


def _name(row: Mapping[str, object], key: str, max_bytes: int) -> str | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string or a whole number, not {_type_name(value)}")  # noqa: TRY004
    _check_unicode(key, value)
    if len(value.encode()) > max_bytes:
        raise ValueError(f"{key} is longer than {max_bytes} bytes")
    return value


def _attributes(value: object) -> Attributes | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            raise ValueError("attributes must be a JSON object") from None
        except ValueError:
            raise ValueError(f"attributes have {LARGE_INTEGER}") from None
    if not isinstance(value, dict):
        raise ValueError(f"attributes must be an object, not {_type_name(value)}")  # noqa: TRY004
    try:
        dumped = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("attributes must be made of JSON values (so no NaN, infinity or date)") from None
    _check_unicode("attributes", dumped)
    if _depth(value) > MAX_ATTRIBUTE_DEPTH:
        raise ValueError(f"attributes are nested deeper than {MAX_ATTRIBUTE_DEPTH} levels")
    if has_large_integer(value):
        raise ValueError(f"attributes have {LARGE_INTEGER}")
    return value


def is_large(integer: int) -> bool:
    """Whether an integer has more than 64 bits."""
    return not -(2**63) <= integer < 2**63


def has_large_integer(value: object) -> bool:
    """Whether a JSON value is or holds an integer of more than 64 bits."""
    if isinstance(value, Mapping):
        return any(map(has_large_integer, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_large_integer, value))
    return isinstance(value, int) and is_large(value)


def _depth(value: object) -> int:
    """Levels of objects and lists; json has parsed it, so it is not too deep to walk."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _check_unicode(key: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key} has an unpaired surrogate, which no UTF-8 text can have") from None


def _type_name(value: object) -> str:
    names = {
        bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list",
        dict: "an object", type(None): "null",
    }  # fmt: skip
    return names.get(type(value), type(value).__name__)
