"""What is found in record files before anyone trains on them."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.data_check import DataReport, Finding, Role, check_data, role_of
from cognate.errors import CognateError

Row = tuple[str, str | None]


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that files have short names in the messages."""
    monkeypatch.chdir(tmp_path)


def write(name: str, *rows: Row) -> str:
    lines = [{"text": text} | ({} if label is None else {"label": label}) for text, label in rows]
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


def check(*names: str) -> DataReport:
    return check_data([(name, role_of(name)) for name in names])


def only(report: DataReport, kind: str) -> Finding:
    (finding,) = (finding for finding in report.findings if finding.kind == kind)
    return finding


def kinds(report: DataReport) -> list[tuple[str, str]]:
    return [(finding.severity, finding.kind) for finding in report.findings]


GOOD_TRAIN: list[Row] = [("a", "1"), ("b", "1"), ("c", "2"), ("d", "2")]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train.jsonl", "train"),
        ("data/Queries.csv.gz", "queries"),
        ("index.parquet", "index"),
        ("-", None),
        ("training.jsonl", None),
    ],
)
def test_a_role_is_told_by_the_files_name(name: str, role: Role | None) -> None:
    assert role_of(name) == role


def test_good_files_give_counts_and_no_finding() -> None:
    train = write("train.jsonl", *GOOD_TRAIN)
    queries = write("queries.jsonl", ("e", "3"))
    index = write("index.jsonl", ("f", "3"), ("g", "4"))
    report = check(train, queries, index)
    assert report.findings == []
    assert [(file.role, file.records, file.labels) for file in report.files] == [
        ("train", 4, 2),
        ("queries", 1, 1),
        ("index", 2, 2),
    ]


def test_label_sizes_are_counted_in_classes() -> None:
    sizes = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 9, "f": 10, "g": 49, "h": 50}
    rows = [(f"{label}{n}", label) for label, size in sizes.items() for n in range(size)]
    summary = check(write("train.jsonl", *rows)).files[0]
    assert summary.label_sizes == {"1": 1, "2": 1, "3-4": 2, "5-9": 1, "10-49": 2, "50+": 1}
    assert (summary.largest_label, summary.single_record_labels, summary.labels) == (50, 1, 8)


def test_labels_with_a_single_record_are_named_in_training_only() -> None:
    rows = [*GOOD_TRAIN, ("e", "lonely")]
    finding = only(check(write("train.jsonl", *rows)), "single_record_labels")
    assert (finding.severity, finding.count, finding.examples) == ("warning", 1, ["lonely"])
    assert finding.message.startswith("train.jsonl: 1 labels of 3")
    assert only(check(write("plain.jsonl", *rows)), "single_record_labels").severity == "note"
    assert kinds(check(write("index.jsonl", *rows))) == []


def test_empty_texts_and_other_bad_lines_are_found_with_their_lines() -> None:
    Path("train.jsonl").write_text(
        '{"text": "a", "label": "1"}\n{"text": " ", "label": "1"}\nnonsense\n{"text": "b", "label": "1"}\n'
        '{"text": "", "label": "2"}\n{"label": "2"}\n{"text": "c", "label": "2"}\n'
    )
    report = check("train.jsonl")
    assert only(report, "empty_texts").examples == ["train.jsonl:2", "train.jsonl:5"]
    assert only(report, "bad_lines").examples == [
        "train.jsonl:3: invalid JSON: Expecting value at column 1",
        "train.jsonl:6: there is no text",
    ]
    summary = report.files[0]
    assert (summary.records, summary.empty_texts, summary.bad_lines) == (3, 2, 2)


def test_repeated_texts_are_found_and_contradictions_apart() -> None:
    report = check(
        write("train.jsonl", *GOOD_TRAIN, (" a ", "1"), ("b", "2"), ("a", "1"), ("c", None), ("c", "1"))
    )
    repeated, contradictory = only(report, "repeated_texts"), only(report, "contradictory_texts")
    lines = [f"train.jsonl:{line}" for line in (5, 6, 7, 8, 9)]
    assert (repeated.severity, repeated.count, repeated.examples) == ("warning", 5, lines)
    assert (contradictory.severity, contradictory.count) == ("error", 2)
    assert contradictory.examples == [
        "train.jsonl:2 and train.jsonl:6",
        "train.jsonl:3 and train.jsonl:9",
    ]


@pytest.mark.parametrize(
    ("name", "severity"), [("train", "error"), ("queries", "error"), ("index", "note"), ("plain", "note")]
)
def test_records_without_a_label_matter_where_labels_are_needed(name: str, severity: str) -> None:
    report = check(write(f"{name}.jsonl", *GOOD_TRAIN, ("e", None)))
    finding = only(report, "without_label")
    assert (finding.severity, finding.count, finding.examples) == (severity, 1, [f"{name}.jsonl:5"])


def test_training_with_one_label_only_is_an_error() -> None:
    assert kinds(check(write("train.jsonl", ("a", "1"), ("b", "1")))) == [("error", "one_label")]


@pytest.mark.parametrize("other", ["queries.jsonl", "index.jsonl"])
def test_labels_and_texts_that_leak_into_training_are_errors(other: str) -> None:
    train = write("train.jsonl", *GOOD_TRAIN)
    evaluation = write(other, ("e", "3"), ("a\n", "1"), ("g", "2"))
    report = check(train, evaluation)
    labels, texts = only(report, "leaking_labels"), only(report, "leaking_texts")
    assert (labels.severity, labels.count, labels.examples) == ("error", 2, ["1", "2"])
    assert (texts.severity, texts.count) == ("error", 1)
    assert texts.examples == [f"train.jsonl:1 and {other}:2"]


def test_the_same_text_under_another_label_in_another_file_is_a_contradiction() -> None:
    report = check(write("train.jsonl", *GOOD_TRAIN), write("index.jsonl", ("a", "3"), ("b", None)))
    assert only(report, "leaking_texts").count == 2
    contradictory = only(report, "contradictory_texts")
    assert (contradictory.count, contradictory.examples) == (1, ["train.jsonl:1 and index.jsonl:1"])


def test_queries_and_index_share_labels_as_they_should_but_no_texts() -> None:
    queries = write("queries.jsonl", ("a", "1"), ("b", "2"))
    index = write("index.jsonl", ("c", "1"), ("b", "2"), ("d", "2"))
    report = check(queries, index)
    assert kinds(report) == [("warning", "shared_texts")]
    assert only(report, "shared_texts").examples == ["queries.jsonl:2 and index.jsonl:2"]


def test_queries_that_nothing_in_any_index_answers_are_found() -> None:
    queries = write("queries.jsonl", ("a", "1"), ("b", "2"), ("c", "3"))
    index = write("index.jsonl", ("d", "1"))
    report = check(queries, index)
    finding = only(report, "queries_without_relevant")
    assert (finding.severity, finding.count) == ("warning", 2)
    assert finding.examples == ["queries.jsonl:2", "queries.jsonl:3"]
    more = write("more.jsonl", ("e", "2"))
    report = check_data([(queries, "queries"), (index, "index"), (more, "index")])
    assert only(report, "queries_without_relevant").examples == ["queries.jsonl:3"]
    assert (
        only(check(queries, write("index.jsonl", ("d", "9"))), "queries_without_relevant").severity == "error"
    )


def test_files_of_no_known_role_are_compared_without_judging() -> None:
    one, other = write("one.jsonl", *GOOD_TRAIN), write("other.jsonl", ("a", "1"), ("z", "1"))
    assert kinds(check(one, other)) == [("note", "shared_labels"), ("note", "shared_texts")]


def test_the_gravest_findings_come_first() -> None:
    train = write("train.jsonl", *GOOD_TRAIN, ("d", "2"), ("e", "5"))
    report = check(write("plain.jsonl", ("x", None)), train, write("index.jsonl", ("a", "1")))
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert {"error", "warning", "note"} == set(severities)


def test_a_report_is_plain_json() -> None:
    report = check(write("train.jsonl", *GOOD_TRAIN, ("a", "2")))
    assert DataReport.model_validate(json.loads(json.dumps(report.as_json()))) == report


def test_examples_are_few_however_many_there_are() -> None:
    report = check(write("train.jsonl", *GOOD_TRAIN, *[("a", "1")] * 1000))
    assert only(report, "repeated_texts").count == 1000
    assert len(only(report, "repeated_texts").examples) == 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing.jsonl", "does not exist"), ("folder.jsonl", "is a folder"), ("empty.jsonl", "has no records")],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(name: str, reason: str) -> None:
    Path("folder.jsonl").mkdir()
    Path("empty.jsonl").touch()
    with pytest.raises(CognateError, match=rf"^{name} {reason}"):
        check(name)


def test_lines_are_those_of_compressed_and_quoted_tables() -> None:
    content = 'text,label\n"two\nlines",1\n"two\nlines",1\n'
    Path("train.csv.gz").write_bytes(gzip.compress(content.encode()))
    assert only(check("train.csv.gz"), "repeated_texts").examples == ["train.csv.gz:4"]


@given(
    st.lists(
        st.tuples(st.integers(0, 8).map(str), st.none() | st.integers(0, 4).map(str)), min_size=1, max_size=30
    )
)
def test_counts_are_those_of_a_plain_count(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    summary = check(write(str(tmp_path_factory.mktemp("data") / "index.jsonl"), *rows)).files[0]
    labels_of: dict[str, set[str]] = {}
    for text, label in rows:
        labels_of.setdefault(text, set()).update([label] if label is not None else [])
    labels = [label for _, label in rows if label is not None]
    assert summary.repeated_texts == len(rows) - len(labels_of)
    assert summary.contradictory_texts == sum(len(some) > 1 for some in labels_of.values())
    assert summary.without_label == len(rows) - len(labels)
    assert summary.labels == len(set(labels)) == sum(summary.label_sizes.values())
    assert summary.single_record_labels == sum(labels.count(label) == 1 for label in set(labels))


def test_the_sample_is_fit_for_training() -> None:
    sample = Path(__file__).resolve().parents[1] / "cognate/sample"
    report = check(*(str(sample / f"{name}.jsonl") for name in ("train", "queries", "index")))
    assert report.findings == []
