"""Where a job's records come from, each source read record by record."""

import contextlib
import glob
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cognate.artifact import kind_of
from cognate.errors import CognateError
from cognate.index import Index, IndexManifest
from cognate.records import COMPRESSIONS, STDIN, Record, Rejects, read_records
from cognate.updates import open_index, state_of
from indexer.remote import Remote, find_remote, is_remote

PARQUET = ".parquet"
ROWS = 4096
"""Records that are read from an index at a time."""


@dataclass(frozen=True)
class Source:
    """Records to read, once or again from the start.

    Attributes:
        name: For people.
        settings: What must be the same for an interrupted job to go on, by name; without secrets.
        read: Reads all records; gives bad ones to the rejects, or raises at the first.
        expected: How many records there are, about; None where that is not known.
        repeatable: Whether it can be read again.
    """

    name: str
    settings: Mapping[str, str]
    read: Callable[[Rejects | None], Generator[Record, None, None]]
    expected: int | None = None
    repeatable: bool = True


def open_source(sources: str | Path | Sequence[str | Path]) -> Source:
    """Find out what the sources are, and put them together to one.

    Args:
        sources: One or several, which are read in that order: record files; patterns of them (``*``, ``**``,
            ``?``, ``[…]``), in the order of their names; folders, of which every Parquet file below is read,
            in the order of their paths; URLs, see ``indexer.remote``; index folders. Or ``-`` alone, for JSON
            Lines on standard input.

    Raises:
        CognateError: One of them is not there, or none was given.
    """
    names = [sources] if isinstance(sources, str | Path) else list(sources)
    if not names:
        raise CognateError("there is nothing to read; give at least one file of records")
    if [str(name) for name in names] == [STDIN]:
        return Source("<stdin>", {"input": "standard input"}, _reader(STDIN), repeatable=False)
    parts = [part for name in names for part in _parts(str(name))]
    if len(parts) == 1:
        return parts[0]
    settings = {"input": ", ".join(part.name for part in parts)}
    for part in parts:
        settings.update({key: value for key, value in part.settings.items() if key != "input"})
    counts = [part.expected for part in parts]

    def read(rejects: Rejects | None) -> Generator[Record, None, None]:
        for part in parts:
            yield from part.read(rejects)

    return Source(
        f"{parts[0].name} and {len(parts) - 1} more",
        settings,
        read,
        None if None in counts else sum(count or 0 for count in counts),
    )


def _parts(name: str) -> list[Source]:
    if name == STDIN:
        raise CognateError("standard input cannot be read together with other sources; give it alone")
    if is_remote(name):
        found = find_remote(name)
        return [_remote(remote, allow_empty=len(found) > 1) for remote in found]
    path = Path(name)
    try:
        if path.is_dir():
            return [_index(path)] if kind_of(path) == IndexManifest.KIND else _dataset(path)
        if path.exists() or not glob.has_magic(name):
            return [_file(path)]
    except OSError as error:
        raise CognateError(f"{name} cannot be read: {error.strerror}") from None
    files = sorted(each for each in glob.glob(name, recursive=True) if Path(each).is_file())  # noqa: PTH207
    if not files:
        raise CognateError(f"no file is named like {name}; give a pattern of record files")
    return [_file(Path(each), allow_empty=True) for each in files]


def _reader(
    path: str | Path, *, allow_empty: bool = False
) -> Callable[[Rejects | None], Generator[Record, None, None]]:
    def read(rejects: Rejects | None) -> Generator[Record, None, None]:
        yield from read_records(path, rejects=rejects, allow_empty=allow_empty)

    return read


def _file(path: Path, *, allow_empty: bool = False) -> Source:
    if not path.exists():
        raise CognateError(f"{path} does not exist; give a file of records")
    return Source(
        str(path),
        {"input": str(path), f"size of {path}": f"{path.stat().st_size} bytes"},
        _reader(path, allow_empty=allow_empty),
        _count(path),
    )


def _dataset(folder: Path) -> list[Source]:
    """The Parquet files of a folder, but for those that Spark and its like hide: _temporary, .crc."""
    files = sorted(
        path
        for path in folder.rglob(f"*{PARQUET}")
        if path.is_file() and not any(part[0] in "._" for part in path.relative_to(folder).parts)
    )
    if not files:
        raise CognateError(
            f"{folder} is a folder without {PARQUET} files, and no index; give files or a pattern of them, "
            f"such as {folder}/*.jsonl"
        )
    return [_file(path, allow_empty=True) for path in files]


def _index(folder: Path) -> Source:
    def read(rejects: Rejects | None) -> Generator[Record, None, None]:
        with contextlib.closing(open_index(folder, device="cpu")) as index:
            yield from index_records(index)

    manifest = IndexManifest.read(folder)
    state = state_of(folder)
    return Source(
        str(folder),
        {"input": str(folder), f"version of {folder}": f"{state.base_version}, revision {state.revision}"},
        read,
        manifest.count,
    )


def index_records(index: Index) -> Iterator[Record]:
    """The records of an index, in the order of its rows."""
    all_rows = index.all_rows()
    for start in range(0, len(all_rows), ROWS):
        yield from index.records(all_rows[start : start + ROWS].tolist())


def _remote(remote: Remote, *, allow_empty: bool) -> Source:
    def read(rejects: Rejects | None) -> Generator[Record, None, None]:
        with remote.open() as stream:
            yield from read_records(remote.name, rejects=rejects, stream=stream, allow_empty=allow_empty)

    size = "unknown" if remote.size is None else f"{remote.size} bytes"
    return Source(remote.name, {"input": remote.name, f"size of {remote.name}": size}, read)


def _count(path: Path) -> int | None:
    """How many records a file has, about; None where only reading it all would tell, or it cannot be read."""
    if not path.is_file() or path.name.lower().endswith(COMPRESSIONS):
        return None
    try:
        if path.name.lower().endswith(PARQUET):
            import pyarrow.parquet

            count: int = pyarrow.parquet.read_metadata(path).num_rows
            return count
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except (OSError, ValueError):
        return None
