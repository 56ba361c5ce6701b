"""Record files: every format, and every way in which one can be bad."""

import csv
import gzip
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.errors import CognateError, RecordError
from cognate.records import (
    MAX_ATTRIBUTE_DEPTH,
    MAX_ID_BYTES,
    MAX_LABEL_BYTES,
    MAX_LINE_BYTES,
    Record,
    Rejects,
    read_numbered_records,
    read_records,
    read_tables,
)

Row = Mapping[str, Any]
Fields = tuple[str, str | None, str | None, Mapping[str, Any] | None]

COLUMNS = ("text", "label", "id", "attributes")
ROWS: tuple[Row, ...] = (
    {"text": "How do I reset it?", "label": "reset", "id": "a", "attributes": {"lang": "en", "n": [1, 2.5]}},
    {"text": '怎样 "reset", it?\nAgain?', "label": "7"},
)
RECORDS: list[Fields] = [
    ("How do I reset it?", "reset", "a", {"lang": "en", "n": [1, 2.5]}),
    ('怎样 "reset", it?\nAgain?', "7", None, None),
]


def fields(record: Record) -> Fields:
    return record.text, record.label, record.id, record.attributes


def read(path: Path) -> list[Fields]:
    return [fields(record) for record in read_records(path)]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    """What reading the file to its end says, without the folder."""
    with pytest.raises(CognateError) as caught:
        read(path)
    return str(caught.value).replace(f"{path.parent}/", "")


def as_jsonl(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_table(rows: Sequence[Row], delimiter: str) -> bytes:
    content = io.StringIO(newline="")
    writer = csv.writer(content, delimiter=delimiter)
    writer.writerow(COLUMNS)
    for row in rows:
        attributes = row.get("attributes")
        writer.writerow(
            [
                row["text"],
                row.get("label"),
                row.get("id"),
                None if attributes is None else json.dumps(attributes),
            ]
        )
    return content.getvalue().encode()


def as_parquet(columns: Mapping[str, Any]) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), content)
    return content.getvalue()


def zst(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


CONTENTS = {
    ".jsonl": as_jsonl(ROWS),
    ".json": as_jsonl(ROWS),
    ".csv": as_table(ROWS, ","),
    ".tsv": as_table(ROWS, "\t"),
}
COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".zst": zst}

MANY = as_jsonl([{"text": f"question number {n * n}", "label": str(n)} for n in range(3000)])

texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
names = st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=100)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=5,
)
attributes = st.none() | st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=3)
rows_of_any_kind = st.lists(
    st.fixed_dictionaries({"text": texts, "label": names, "id": names, "attributes": attributes}),
    min_size=1,
    max_size=6,
)


# Formats


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", CONTENTS)
def test_text_formats_are_read_plain_and_compressed(tmp_path: Path, form: str, compression: str) -> None:
    content = COMPRESSIONS[compression](CONTENTS[form])
    assert read(write(tmp_path / f"records{form}{compression}", content)) == RECORDS


def test_the_ending_may_be_in_capitals(tmp_path: Path) -> None:
    assert read(write(tmp_path / "RECORDS.JSONL.GZ", gzip.compress(CONTENTS[".jsonl"]))) == RECORDS


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_compressed_files_that_were_joined_are_read_to_the_end(tmp_path: Path, compression: str) -> None:
    content = COMPRESSIONS[compression](CONTENTS[".jsonl"]) * 2
    assert read(write(tmp_path / f"records.jsonl{compression}", content)) == RECORDS * 2


def test_parquet_is_read_with_attributes_as_a_struct(tmp_path: Path) -> None:
    content = as_parquet(
        {
            "other": [1.5, 2.5],
            "label": [7, None],
            "text": ["a", "b"],
            "attributes": [{"lang": "en", "tags": ["x"]}, None],
        }
    )
    assert read(write(tmp_path / "records.parquet", content)) == [
        ("a", "7", None, {"lang": "en", "tags": ["x"]}),
        ("b", None, None, None),
    ]


def test_standard_input_is_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CONTENTS[".jsonl"] + b"nonsense\n")))
    records = read_records("-")
    assert [fields(next(records)), fields(next(records))] == RECORDS
    with pytest.raises(RecordError, match=r"^<stdin>:3: invalid JSON"):
        next(records)


@pytest.mark.parametrize("form", CONTENTS)
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path, form: str) -> None:
    rows = ROWS[:1]
    content = as_jsonl(rows) if form.startswith(".json") else as_table(rows, "\t" if form == ".tsv" else ",")
    windows = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert read(write(tmp_path / f"records{form}", b"\xef\xbb\xbf" + windows)) == RECORDS[:1]


@pytest.mark.parametrize("form", [".jsonl", ".csv"])
def test_blank_lines_and_a_missing_last_line_end_change_nothing(tmp_path: Path, form: str) -> None:
    lines = {".jsonl": b'\n{"text": "a"}\n\n \n{"text": "b"}', ".csv": b"\ntext\n\na\n\nb"}[form]
    assert [fields[0] for fields in read(write(tmp_path / f"records{form}", lines))] == ["a", "b"]


def test_fields_of_other_names_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a", "score": [1, {}], "label": null}\n')
    assert read(path) == [("a", None, None, None)]
    path = write(tmp_path / "a.csv", b"score,label,text,\n1,,a,x\n")
    assert read(path) == [("a", None, None, None)]


def test_a_label_or_an_id_that_is_a_whole_number_is_its_digits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a", "label": 0, "id": -12345678901234567890}\n')
    assert read(path) == [("a", "0", "-12345678901234567890", None)]


def test_white_space_and_nul_within_a_text_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": " a\\u0000b\\r\\n "}\n')
    assert read(path)[0][0] == " a\x00b\r\n "
    assert read(write(tmp_path / "a.csv", b"text\n a\x00b \n"))[0][0] == " a\x00b "


def test_records_come_one_by_one_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\nnonsense\n')
    records = read_records(path)
    assert next(records).text == "a"


def test_records_are_told_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'text\n"a\nb"\nc\n\nd\n')
    assert [(line, record.text) for line, record in read_numbered_records(path)] == [
        (2, "a\nb"),
        (4, "c"),
        (6, "d"),
    ]


@given(rows_of_any_kind)
def test_any_records_written_as_json_lines_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    path = write(tmp_path_factory.mktemp("records") / "a.jsonl", as_jsonl(rows))
    assert read(path) == [tuple(row[column] for column in COLUMNS) for row in rows]


@given(rows_of_any_kind)
def test_any_records_written_as_csv_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    path = write(tmp_path_factory.mktemp("records") / "a.csv", as_table(rows, ","))
    assert read(path) == [tuple(row[column] for column in COLUMNS) for row in rows]


@given(rows_of_any_kind)
def test_any_records_written_as_parquet_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    # Attributes differ in shape from row to row, so they are kept as JSON.
    columns: dict[str, Any] = {
        column: pa.array([row[column] for row in rows], pa.string()) for column in COLUMNS[:3]
    }
    columns["attributes"] = pa.array(
        [None if row["attributes"] is None else json.dumps(row["attributes"]) for row in rows], pa.string()
    )
    path = write(tmp_path_factory.mktemp("records") / "a.parquet", as_parquet(columns))
    assert read(path) == [tuple(row[column] for column in COLUMNS) for row in rows]


# Bad lines


BAD_JSON = {
    b"nonsense": "invalid JSON: Expecting value at column 1",
    b'{"text": "a"': "invalid JSON: Expecting ',' delimiter at column 13",
    b'{"text": "a"} {}': "invalid JSON: Extra data at column 15",
    b"[]": "expected a JSON object, found a list",
    b'"a"': "expected a JSON object, found a string",
    b"null": "expected a JSON object, found null",
    b'{"label": "x"}': "there is no text",
    b'{"text": null}': "there is no text",
    b'{"text": 5}': "text must be a string, not a number",
    b'{"text": true}': "text must be a string, not true or false",
    b'{"text": ["a"]}': "text must be a string, not a list",
    b'{"text": ""}': "the text is empty",
    b'{"text": " \\n\\t"}': "the text is empty",
    b'{"text": "a\xff"}': "invalid UTF-8 at byte 12 of the line",
    b'{"text": "a\x00"}': "invalid JSON: Invalid control character at at column 12",
    b'{"text": "\\ud800"}': "text has an unpaired surrogate, which no UTF-8 text can have",
    b'{"text": "a", "label": "\\udfff"}': "label has an unpaired surrogate, which no UTF-8 text can have",
    b'{"text": "a", "label": 1.5}': "label must be a string or a whole number, not a number",
    b'{"text": "a", "label": false}': "label must be a string or a whole number, not true or false",
    b'{"text": "a", "id": {}}': "id must be a string or a whole number, not an object",
    b'{"text": "a", "id": "%s"}' % (b"x" * (MAX_ID_BYTES + 1)): f"id is longer than {MAX_ID_BYTES} bytes",
    b'{"text": "a", "label": "%s"}' % (b"x" * (MAX_LABEL_BYTES + 1)): "label is longer than 4096 bytes",
    b'{"text": "a", "attributes": []}': "attributes must be an object, not a list",
    b'{"text": "a", "attributes": "x"}': "attributes must be a JSON object",
    b'{"text": "a", "attributes": {"x": NaN}}': "attributes must be made of JSON values (so no NaN",
    b'{"text": "a", "attributes": {"x": 1e999}}': "attributes must be made of JSON values (so no NaN",
    b'{"text": "a", "attributes": {"\\ud800": 1}}': "attributes has an unpaired surrogate",
    b'{"text": "a", "attributes": %s}' % (b'{"a":' * 100_000 + b"1" + b"}" * 100_000): "nested too deep",
    b"[" * 100_000: "invalid JSON: nested too deep",
    b'{"text": "a", "label": %s}' % (b"9" * 5000): "a whole number has more than 4,300 digits",
    b'{"text": "a", "attributes": {"x": [%d]}}' % 2**63: "attributes have a whole number of more than",
    b'{"text": "a", "attributes": {"x": -%s}}' % (b"9" * 400): "attributes have a whole number of more than",
}


@pytest.mark.parametrize("line", BAD_JSON, ids=lambda line: line[:32].decode("ascii", "replace"))
def test_a_bad_json_line_is_told_by_its_number_or_skipped_and_counted(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "before"}\n\n' + line + b'\n{"text": "after"}\n')
    assert refusal(path).startswith("a.jsonl:3: ")
    assert BAD_JSON[line] in refusal(path)

    told: list[RecordError] = []
    rejects = Rejects(told.append)
    assert [record.text for record in read_records(path, rejects=rejects)] == ["before", "after"]
    assert [(error.source, error.line) for error in told] == [(str(path), 3)]
    assert rejects.count == 1


BAD_TABLE_ROWS = {
    b"a,x,1": "3 columns where the header has 4",
    b"a,x,1,,": "5 columns where the header has 4",
    b",x,1,": "the text is empty",
    b"  ,x,1,": "the text is empty",
    b'a,x,1,"{"': "attributes must be a JSON object",
    b"a,x,1,[]": "attributes must be an object, not a list",
    b'a,x,1,"{""n"": Infinity}"': "attributes must be made of JSON values",
    b'a,x,1,"{""n"": %s}"' % (b"9" * 5000): "attributes have a whole number of more than 64 bits",
}


@pytest.mark.parametrize("row", BAD_TABLE_ROWS, ids=bytes.decode)
def test_a_bad_row_of_a_table_is_told_by_its_line_or_skipped_and_counted(tmp_path: Path, row: bytes) -> None:
    path = write(tmp_path / "a.csv", b'text,label,id,attributes\n"be\nfore",,,\n' + row + b"\nafter,,,\n")
    assert refusal(path).startswith(f"a.csv:4: {BAD_TABLE_ROWS[row]}")

    rejects = Rejects(lambda error: None)
    assert [record.text for record in read_records(path, rejects=rejects)] == ["be\nfore", "after"]
    assert rejects.count == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"label,body\n1,a\n", "a.csv:1: the header has no column named text; it has label, body"),
        (b"\n\nbody\na\n", "a.csv:3: the header has no column named text; it has body"),
        (b"text,label,text\na,1,b\n", "a.csv:1: the header has more than one column named text"),
        (b'text\na\n"b\nc\nd\n', "a.csv:3: a quote that is opened here is never closed"),
        (b'text,label\na,1\n"b"c,1\n', "a.csv:3: ',' expected after '\"' that ends a cell"),
        (b"text\na\rb\n", "a.csv:2: a carriage return in a cell without quotes"),
        (b"text\na\nb\n\xffc\n", "a.csv:4: invalid UTF-8 at byte 1 of the line"),
        (b'text\n"a\nb\xff"\n', "a.csv:3: invalid UTF-8 at byte 2 of the line"),
    ],
)
def test_what_spoils_the_rest_of_a_table_stops_even_a_reader_that_skips(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = write(tmp_path / "a.csv", content)
    assert refusal(path).startswith(reason)
    with pytest.raises(RecordError):
        list(read_records(path, rejects=Rejects(lambda error: None)))


def test_parquet_rows_are_told_by_their_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", as_parquet({"text": ["x"] * 1500 + [None, " ", "y"]}))
    assert refusal(path) == "a.parquet:1501: there is no text"
    told: list[int] = []
    rejects = Rejects(lambda error: told.append(error.line))
    assert len(list(read_records(path, rejects=rejects))) == 1501
    assert told == [1501, 1502]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"body": ["a"]}, "a.parquet has no column named text; it has body"),
        ({"text": [5]}, "a.parquet:1: text must be a string, not a number"),
        ({"text": [b"a"]}, "a.parquet:1: text must be a string, not bytes"),
        (
            {"text": ["a"], "label": [1.5]},
            "a.parquet:1: label must be a string or a whole number, not a number",
        ),
        ({"text": pa.array([b"\xff"]).view(pa.string())}, "a.parquet:1: invalid UTF-8 in this row"),
        (
            {"text": ["a"], "attributes": pa.array([{"day": 1}], pa.struct({"day": pa.date32()}))},
            "a.parquet:1: attributes must be made of JSON values",
        ),
        ({"text": pa.array([], pa.string())}, "a.parquet has no records"),
    ],
)
def test_bad_parquet_is_one_clear_error(tmp_path: Path, columns: Row, reason: str) -> None:
    assert refusal(write(tmp_path / "a.parquet", as_parquet(columns))).startswith(reason)


@pytest.mark.parametrize("cut", [0, 3, 100, -8, -1])
def test_a_truncated_parquet_file_is_one_clear_error(tmp_path: Path, cut: int) -> None:
    content = as_parquet({"text": ["x"] * 100})
    assert "is no readable Parquet file" in refusal(write(tmp_path / "a.parquet", content[:cut]))


def test_a_required_label_is_missed_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a", "label": "1"}\n{"text": "b", "label": ""}\n')
    with pytest.raises(RecordError, match=r"a\.jsonl:2: there is no label"):
        list(read_records(path, require_label=True))


@pytest.mark.parametrize("form", [".jsonl", ".csv"])
def test_a_line_past_the_limit_is_refused_without_being_parsed(tmp_path: Path, form: str) -> None:
    content = b'text\n{"text": "' if form == ".csv" else b'{"text": "a"}\n{"text": "'
    path = write(tmp_path / f"a{form}", content + b"x" * MAX_LINE_BYTES + b'"}\n')
    assert refusal(path) == f"a{form}:2: the line is longer than {MAX_LINE_BYTES} bytes"


def test_a_quoted_cell_past_the_limit_is_refused_where_it_begins(tmp_path: Path) -> None:
    line = b"x" * 65_535 + b"\n"
    path = write(tmp_path / "a.csv", b'text\na\n"' + line * (MAX_LINE_BYTES // len(line) + 1) + b'"\n')
    assert refusal(path).startswith("a.csv:3: field larger than field limit")


# Bad files


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_compressed_file_never_passes_for_a_whole_one(
    tmp_path: Path, compression: str, share: float
) -> None:
    content = COMPRESSIONS[compression](MANY)
    path = write(tmp_path / f"a.jsonl{compression}", content[: int(len(content) * share)])
    assert refusal(path).startswith(f"a.jsonl{compression} cannot be decompressed: ")


@pytest.mark.parametrize("form", [".csv", ".tsv"])
@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_truncated_table_is_refused_too(tmp_path: Path, form: str, compression: str) -> None:
    table = as_table([{"text": f"number {n}"} for n in range(3000)], "\t" if form == ".tsv" else ",")
    path = write(tmp_path / f"a{form}{compression}", COMPRESSIONS[compression](table)[:-5])
    assert "cannot be decompressed" in refusal(path)
    with pytest.raises(CognateError, match="cannot be decompressed"):
        list(read_tables(path))


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_file_that_is_not_compressed_as_its_name_says_is_refused(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / f"a.jsonl{compression}", MANY)
    assert refusal(path).startswith(f"a.jsonl{compression} cannot be decompressed: ")


def test_damage_within_a_gzip_file_is_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(MANY))
    content[200:250] = bytes(50)
    assert "cannot be decompressed" in refusal(write(tmp_path / "a.jsonl.gz", bytes(content)))


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.tsv.gz", "b.jsonl", "b.csv", "c.csv"]
)
def test_a_file_without_a_record_is_refused(tmp_path: Path, name: str) -> None:
    contents = {"b.jsonl": b"\n \n", "b.csv": b"\n\n", "c.csv": b"text,label\n"}
    assert refusal(write(tmp_path / name, contents.get(name, b""))) == (
        f"{name} has no records; give a file with at least one"
    )


def test_a_file_whose_every_line_is_skipped_is_not_called_empty(tmp_path: Path) -> None:
    rejects = Rejects(lambda error: None)
    path = write(tmp_path / "a.jsonl", b"nonsense\nnonsense\n")
    assert list(read_records(path, rejects=rejects)) == []
    assert rejects.count == 2


@pytest.mark.parametrize("name", ["a.txt", "a", "a.gz", "a.parquet.gz.zip", ".jsonl"])
def test_a_name_of_no_known_format_is_refused_with_those_that_are(tmp_path: Path, name: str) -> None:
    assert ".jsonl, .json, .csv, .tsv, .parquet" in refusal(write(tmp_path / name, b'{"text": "a"}\n'))


@pytest.mark.parametrize("ending", ["", ".jsonl", ".csv", ".parquet", ".jsonl.gz", ".csv.zst"])
def test_a_missing_file_and_a_folder_are_told_as_such(tmp_path: Path, ending: str) -> None:
    assert refusal(tmp_path / f"none{ending}").startswith(f"none{ending} does not exist")
    (tmp_path / f"folder{ending}").mkdir()
    assert refusal(tmp_path / f"folder{ending}").startswith(f"folder{ending} is a folder")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_name_that_no_file_can_have_is_one_clear_error(tmp_path: Path, ending: str) -> None:
    assert "File name too long" in refusal(tmp_path / f"{'a' * 300}{ending}")


# Tables as they stand


def test_tables_are_read_as_cells_with_the_lines_they_begin_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b'x\ty\n"1\n2"\t3\n\n4\n')
    assert list(read_tables(path)) == [(1, ["x", "y"]), (2, ["1\n2", "3"]), (5, ["4"])]


def test_only_csv_and_tsv_are_tables(tmp_path: Path) -> None:
    with pytest.raises(CognateError, match=r"a\.jsonl is neither \.csv nor \.tsv"):
        list(read_tables(write(tmp_path / "a.jsonl", b'{"text": "a"}\n')))


def test_attributes_as_deep_as_a_client_can_read_are_taken_and_deeper_ones_refused(tmp_path: Path) -> None:
    for depth, taken in ((MAX_ATTRIBUTE_DEPTH, True), (MAX_ATTRIBUTE_DEPTH + 1, False)):
        path = tmp_path / f"{depth}.jsonl"
        nested = '{"a":' * depth + "1" + "}" * depth
        path.write_text(f'{{"text": "a", "attributes": {nested}}}\n')
        if taken:
            assert len(list(read_records(path))) == 1
        else:
            with pytest.raises(RecordError, match="nested deeper than 16 levels"):
                list(read_records(path))
