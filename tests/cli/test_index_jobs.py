"""``cognate index build``, ``merge``, ``verify`` and ``export``: what they say, and what they refuse."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cognate.encoder import Encoder
from cognate.index import Index
from indexer.batch_job import work_folder_of
from tests.indexer.test_batch_job import texts, write


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("indexer.batch_job.CHUNK", 64)
    return write(tmp_path / "records.jsonl", [{"text": text} for text in texts(200)])


def test_a_job_that_stops_says_what_is_kept_and_then_that_it_goes_on(
    cognate: Callable, source: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    lines = source.read_text()
    source.write_text("".join(lines.splitlines(keepends=True)[:150]) + "nonsense\n")
    arguments = ("index", "build", source, "--bundle", tiny_bundle, "--out", tmp_path / "index")
    stopped = cognate(*arguments)
    assert "records.jsonl:151: invalid JSON" in stopped.check_one_line_error()
    assert "128 records are done and kept: the same command goes on from there" in stopped.err
    done = cognate(*arguments, "--on-error", "skip", "--json")
    assert "going on with the job that was interrupted: 128 records are done" in done.err
    described = json.loads(done.out)
    assert (described["count"], described["resumed"], described["encoded"]) == (150, 128, 22)
    assert (described["rejected"], described["repeated"], described["reused"]) == (1, 0, 0)
    assert "records.jsonl:151" in (tmp_path / "index.rejects.txt").read_text()


def test_a_job_of_another_input_is_refused_until_restart(
    cognate: Callable, source: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text(source.read_text() + "nonsense\n")
    options = ("--bundle", tiny_bundle, "--out", tmp_path / "index")
    assert cognate("index", "build", tmp_path / "bad.jsonl", *options).code == 1
    assert work_folder_of(tmp_path / "index").exists()
    refused = cognate("index", "build", source, *options)
    assert "had another input" in refused.check_one_line_error()
    assert cognate("index", "build", source, *options, "--restart").code == 0
    assert not work_folder_of(tmp_path / "index").exists()


def test_progress_without_a_terminal_is_lines_with_rate_time_left_and_rejects(
    cognate: Callable, source: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cognate.cli.terminal.LINE_EVERY_S", 0)
    source.write_text("nonsense\n" + source.read_text())
    built = cognate(
        "index", "build", source, "--bundle", tiny_bundle, "--out", tmp_path / "index", "--on-error", "skip"
    )
    assert built.code == 0
    (last,) = [line for line in built.err.splitlines() if line.startswith("200 of about 201 records, ")]
    assert " a second, 0:00:00 left, 1 rejects" in last


def test_a_file_of_rejects_that_cannot_be_written_is_told_as_such(
    cognate: Callable, source: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    source.write_text("nonsense\n" + source.read_text())
    arguments = ("index", "build", source, "--bundle", tiny_bundle, "--out", tmp_path / "index")
    refused = cognate(*arguments, "--on-error", "skip", "--rejects", tmp_path).check_one_line_error()
    assert refused == f"error: {tmp_path} cannot be written: Is a directory; give another --rejects"


def test_what_to_read_is_given_once(
    cognate: Callable, source: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    options = ("--bundle", tiny_bundle, "--out", tmp_path / "index")
    for arguments, message in (
        ((), "give either what to read records from or --sql"),
        ((source, "--sql", "SELECT 1"), "give either what to read records from or --sql"),
        (("--sql", "SELECT 1"), "--sql needs --database"),
        ((tmp_path / "none.jsonl",), "none.jsonl does not exist"),
    ):
        assert message in cognate("index", "build", *arguments, *options).check_one_line_error()


def test_a_query_becomes_an_index(
    cognate: Callable, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(tmp_path / "faq.db")) as connection, connection:
        connection.execute("CREATE TABLE faq (question TEXT)")
        connection.executemany("INSERT INTO faq VALUES (?)", [(text,) for text in texts(5)])
    monkeypatch.setenv("COGNATE_DATABASE", f"sqlite:///{tmp_path}/faq.db")
    query = "SELECT question AS text FROM faq ORDER BY rowid"
    built = cognate("index", "build", "--sql", query, "--bundle", tiny_bundle, "--out", tmp_path / "index")
    assert "an index of 5 records" in built.out


def test_indexes_are_merged_verified_and_exported(
    cognate: Callable, source: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.jsonl", [{"text": "a new one", "id": "new"}])
    for path, out in ((source, "a"), (other, "b")):
        assert cognate("index", "build", path, "--bundle", tiny_bundle, "--out", tmp_path / out).code == 0
    merged = cognate("index", "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")
    assert merged.out == f"{tmp_path}/both: an index of 201 records, of 2 indexes\n"
    refused = cognate("index", "merge", tmp_path / "a", tmp_path / "a", "--out", tmp_path / "c")
    assert "both have a record with the id '0'" in refused.check_one_line_error()
    verified = cognate("index", "verify", tmp_path / "both", "--bundle", tiny_bundle, "--samples", 20)
    assert (
        "both: 20 records were encoded again; the smallest cosine with the vector in the index is 1.0000"
        in (verified.out)
    )
    exported = cognate("index", "export", tmp_path / "both", "--out", tmp_path / "all.npy")
    assert exported.out == f"wrote {tmp_path}/all.npy and {tmp_path}/all.jsonl\n"


def test_an_index_whose_vectors_are_not_those_of_its_texts_fails_verification(
    cognate: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    from cognate.artifact import publishing
    from cognate.index import IndexWriter
    from cognate.records import Record

    encoder = Encoder(tiny_bundle)
    with (
        publishing(tmp_path / "wrong", "index") as partial,
        IndexWriter(partial, encoder.dimension) as writer,
    ):
        writer.add([Record("the door", id="d")], encoder.encode(["what is the password"]))
        writer.finish(encoder.bundle)
    assert Index(tmp_path / "wrong").count == 1
    failed = cognate("index", "verify", tmp_path / "wrong", "--bundle", tiny_bundle)
    assert "the vector of record 'd' is not what" in failed.check_one_line_error()
