"""Where a job's records come from, each source read record by record."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cognate.records import STDIN, Record, Rejects, read_records


@dataclass(frozen=True)
class Source:
    """Records to read, once or again from the start.

    Attributes:
        name: For people.
        settings: What must be the same for an interrupted job to go on, by name.
        read: Reads all records; gives bad ones to the rejects, or raises at the first.
        expected: How many records there are, about; None where that is not known.
        repeatable: Whether it can be read again.
    """

    name: str
    settings: Mapping[str, str]
    read: Callable[[Rejects | None], Iterator[Record]]
    expected: int | None = None
    repeatable: bool = True


def open_source(source: str | Path) -> Source:
    """Find out what a source is.

    Args:
        source: A record file, or ``-`` for JSON Lines on standard input.

    Raises:
        CognateError: It is not there.
    """
    name = str(source)
    if name == STDIN:
        return Source(
            "<stdin>",
            {"input": "standard input"},
            lambda rejects: read_records(STDIN, rejects=rejects),
            None,
            False,
        )
    path = Path(source)
    try:
        size = path.stat().st_size
    except OSError:
        size = 0
    return Source(
        name,
        {"input": name, f"size of {name}": f"{size} bytes"},
        lambda rejects: read_records(path, rejects=rejects),
        None,
    )
