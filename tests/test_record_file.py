"""The records of an index by row: whatever they are, they come back as they were."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cognate.record_file import OFFSETS, RECORDS, RecordFile, RecordFileWriter, line
from cognate.records import Hit, Record

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
RECORD = st.builds(
    Record,
    TEXT,
    label=st.none() | TEXT,
    id=TEXT,
    attributes=st.none() | st.dictionaries(TEXT, VALUES, max_size=4),
)


def fields(record: Record | Hit) -> tuple[str, str | None, str | None, str | None]:
    # As JSON, so that 1, 1.0 and True are not the same.
    return record.text, record.label, record.id, json.dumps(record.attributes)


def write(folder: Path, records: list[Record], chunk: int) -> None:
    writer = RecordFileWriter(folder)
    for start in range(0, len(records), chunk):
        some = records[start : start + chunk]
        writer.add(
            [
                line(each, each.id or "", None if each.attributes is None else json.dumps(each.attributes))
                for each in some
            ]
        )
    writer.close()


@given(st.lists(RECORD, max_size=12), st.integers(1, 5), st.data())
@settings(max_examples=100)
def test_records_come_back_by_row_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], chunk: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("records")
    write(folder, records, chunk)
    file = RecordFile(folder, len(records))
    rows = data.draw(st.lists(st.integers(0, len(records) - 1))) if records else []
    assert [fields(record) for record in file.records(rows)] == [fields(records[row]) for row in rows]
    scores = np.linspace(-1, 1, len(rows), dtype=np.float32)
    hits = file.hits(np.array(rows, np.int64), scores)
    assert [fields(hit) for hit in hits] == [fields(records[row]) for row in rows]
    assert [hit.score for hit in hits] == scores.tolist()
    file.close()


@given(st.lists(RECORD, max_size=12), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=20)
def test_the_files_do_not_depend_on_how_many_come_at_a_time(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], one: int, other: int
) -> None:
    first, second = tmp_path_factory.mktemp("records"), tmp_path_factory.mktemp("records")
    write(first, records, one)
    write(second, records, other)
    for name in (RECORDS, OFFSETS):
        assert (first / name).read_bytes() == (second / name).read_bytes()
