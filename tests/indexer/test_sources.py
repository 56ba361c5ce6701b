"""Where records may come from: files, patterns, datasets, indexes, URLs, databases; and what goes wrong."""

import contextlib
import gzip
import http.server
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import indexer
from cognate.errors import CognateError, RecordError
from cognate.index import Index
from cognate.records import Rejects
from tests.indexer.test_batch_job import texts, write


def read(*sources: object) -> list[str]:
    source = indexer.open_source([str(each) for each in sources])
    return [record.text for record in source.read(None)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    for name in ("b", "a", "c"):
        write(folder / f"{name}.jsonl", [{"text": f"{name}{n}"} for n in range(2)])
    (folder / "empty.jsonl").write_text("")
    return folder


def test_files_are_read_in_the_order_given_and_patterns_in_that_of_names(files: Path) -> None:
    assert read(files / "b.jsonl", files / "a.jsonl") == ["b0", "b1", "a0", "a1"]
    assert read(files / "[a-c].jsonl") == ["a0", "a1", "b0", "b1", "c0", "c1"]
    assert read(files / "*.jsonl", files / "a.jsonl") == ["a0", "a1", "b0", "b1", "c0", "c1", "a0", "a1"]
    assert read(files.parent / "**/c.jsonl") == ["c0", "c1"]
    # A file may be named like a pattern.
    (files / "[x].jsonl").write_text('{"text": "x"}\n')
    assert read(files / "[x].jsonl") == ["x"]


def test_a_folder_is_read_as_a_parquet_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    for part, rows in (("year=2/b", ["b"]), ("year=1/a", ["a0", "a1"]), ("_temporary/x", ["x"]), ("c", [])):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow.table({"text": pyarrow.array(rows, pyarrow.string())})
        pyarrow.parquet.write_table(table, folder / f"{part}.parquet")
    source = indexer.open_source(folder)
    assert [record.text for record in source.read(None)] == ["a0", "a1", "b"]
    assert source.expected == 3


def test_how_many_records_there_are_is_known_where_it_costs_little(files: Path, tmp_path: Path) -> None:
    assert indexer.open_source(files / "a.jsonl").expected == 2
    assert indexer.open_source([files / "a.jsonl", files / "b.jsonl"]).expected == 4
    compressed = tmp_path / "a.jsonl.gz"
    compressed.write_bytes(gzip.compress((files / "a.jsonl").read_bytes()))
    assert indexer.open_source(compressed).expected is None
    assert indexer.open_source([files / "a.jsonl", compressed]).expected is None


def test_sources_that_are_not_there_are_refused_before_any_work(files: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for sources, message in (
        ([], "nothing to read"),
        ([files / "a.jsonl", files / "z.jsonl"], "z.jsonl does not exist"),
        ([files / "z*.jsonl"], "no file is named like .*z"),
        ([tmp_path / "nothing"], r"is a folder without .parquet files, and no index.*\*.jsonl"),
        (["-", files / "a.jsonl"], "standard input cannot be read together with other sources"),
        (["s3://bucket/a.jsonl"], r"s3://bucket/a.jsonl needs .*pip install s3fs"),
        (["gs://bucket/a.jsonl"], r"gs://bucket/a.jsonl needs .*pip install gcsfs"),
        (["nosuch://a.jsonl"], "nosuch://a.jsonl cannot be read: Protocol not known"),
        (
            ["ftp://u:p@localhost:1/a.jsonl"],
            "^ftp://localhost:1/a.jsonl cannot be read: .*refused; try again",
        ),
    ):
        with pytest.raises(CognateError, match=message):
            indexer.open_source(sources)


def test_the_records_of_an_index_are_encoded_again_for_a_new_bundle(
    tiny_bundle: Path, minilm_bundle: Path, tmp_path: Path
) -> None:
    source = write(
        tmp_path / "records.jsonl",
        [{"text": "door", "label": "d", "attributes": {"n": 1}}, {"text": "key", "id": "k"}],
    )
    indexer.build(source, tiny_bundle, tmp_path / "old")
    manifest = indexer.build(tmp_path / "old", minilm_bundle, tmp_path / "new")
    assert (manifest.dimension, manifest.count) == (384, 2)
    with contextlib.closing(Index(tmp_path / "new")) as index:
        door, key = index.records([0, 1])
    assert (door.id, door.text, door.label, door.attributes) == ("0", "door", "d", {"n": 1})
    assert (key.id, key.text) == ("k", "key")
    with pytest.raises(CognateError, match="has vectors of another bundle .*leave --reuse out"):
        indexer.build(source, minilm_bundle, tmp_path / "newer", reuse=tmp_path / "old")


def test_only_new_and_changed_texts_are_encoded_beside_an_older_index(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    lines = texts(100)
    source = write(
        tmp_path / "records.jsonl", [{"text": text, "id": f"r{n}"} for n, text in enumerate(lines)]
    )
    indexer.build(source, tiny_bundle, tmp_path / "old")
    # One is gone, one changed, two are new, and labels may change freely.
    changed = [*lines[1:50], "changed", *lines[51:], "new", "new too"]
    write(source, [{"text": text, "label": "x", "id": f"s{n}"} for n, text in enumerate(changed)])
    tally = indexer.Tally()
    indexer.build(source, tiny_bundle, tmp_path / "new", reuse=tmp_path / "old", tally=tally)
    assert (tally.encoded, tally.reused) == (3, 98)
    with (
        contextlib.closing(Index(tmp_path / "old")) as old,
        contextlib.closing(Index(tmp_path / "new")) as new,
    ):
        assert [record.text for record in new.records(range(101))] == changed
        rows = [n for n in range(1, 100) if n != 50]
        assert (new.vectors([row - 1 for row in rows]) == old.vectors(rows)).all()
        assert new.records([0])[0].label == "x"


# HTTP


class Handler(http.server.BaseHTTPRequestHandler):
    """Files by ranges, as object stores have them, and what goes wrong with those."""

    content: dict[str, bytes]
    broken: set[str]
    throttle: list[int]
    """What the next requests are answered with, instead."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.partition("?")[0]
        if self.throttle:
            self.send_response(self.throttle.pop())
            self.send_header("Retry-After", "0.01")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.content.get(name)
        wanted = self.headers.get("Range")
        if name in self.broken and (wanted or "").startswith("bytes=0-") is False and wanted:
            self.send_error(503, "Slow Down")
            return
        if name == "/throttled.jsonl":
            self.send_error(429)
            return
        if content is None:
            self.send_error(404)
            return
        first, last = 0, len(content) - 1
        if wanted:
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last - first + 1))
        if not name.startswith("/plain"):
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[first : last + 1])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Handler.content, Handler.broken, Handler.throttle = {}, set(), []
    monkeypatch.setattr("indexer.remote.BACKOFF", 0.001)
    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://localhost:{running.server_port}"
        running.shutdown()
        thread.join()


LINES = "".join(json.dumps({"text": text}) + "\n" for text in texts(500)).encode()


def test_records_are_read_over_http(server: str, tmp_path: Path) -> None:
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts(500)}), parquet)
    Handler.content = {
        "/a.jsonl": LINES,
        "/plain.jsonl": LINES,
        "/a.jsonl.gz": gzip.compress(LINES),
        "/a.parquet": parquet.read_bytes(),
    }
    for name in ("a.jsonl", "plain.jsonl", "a.jsonl.gz", "a.parquet", "a.jsonl?signature=secret"):
        assert read(f"{server}/{name}") == texts(500), name


def test_what_goes_wrong_over_http_is_one_sentence_without_the_secrets(server: str) -> None:
    Handler.content = {"/a.jsonl": b'{"text": 7}\n'}
    for name, message in (
        ("missing.jsonl?signature=secret", "/missing.jsonl does not exist"),
        ("throttled.jsonl?signature=secret", "/throttled.jsonl cannot be read: the server answered 429"),
        ("a.jsonl?signature=secret", "/a.jsonl:1: text must be a string"),
    ):
        with pytest.raises(CognateError, match=message) as error:
            read(f"{server}/{name}")
        assert "secret" not in str(error.value)
    with pytest.raises(CognateError, match="http://localhost:1/a.jsonl cannot be read: .*Cannot connect"):
        read("http://user:secret@localhost:1/a.jsonl")


@pytest.mark.parametrize("host", ["[bad", "[bad]", "a℀b"])
def test_a_url_with_no_host_that_can_be_is_one_sentence_without_the_secrets(host: str) -> None:
    with pytest.raises(CognateError, match="begins with http:// has a host that is none") as error:
        read(f"http://user:secret@{host}/a.jsonl?signature=secret")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl", "plain.jsonl"])
def test_a_store_that_throttles_is_asked_again_until_it_answers(server: str, name: str) -> None:
    Handler.content = {f"/{name}": LINES}
    Handler.throttle = [429, 503, 429, 503]
    assert read(f"{server}/{name}") == texts(500)
    assert Handler.throttle == []


def test_a_store_that_throttles_midway_is_asked_again(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.remote.BLOCK", 4096)
    monkeypatch.setattr("indexer.remote.BUFFER", 1024)
    Handler.content = {"/a.jsonl": LINES}
    found = []
    for number, record in enumerate(indexer.open_source([f"{server}/a.jsonl"]).read(None)):
        if number % 100 == 50:
            Handler.throttle = [503, 429]
        found.append(record.text)
    assert found == texts(500)


def test_a_store_that_throttles_for_good_is_one_sentence(server: str) -> None:
    Handler.throttle = [429] * 1000
    with pytest.raises(
        CognateError, match=r"a.jsonl cannot be read: the server answered 429.*try again later"
    ):
        read(f"{server}/a.jsonl?signature=secret")
    assert 950 < len(Handler.throttle) < 1000


def test_a_source_that_fails_midway_loses_nothing(
    server: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.batch_job.CHUNK", 64)
    monkeypatch.setattr("indexer.remote.BLOCK", 4096)
    monkeypatch.setattr("indexer.remote.BUFFER", 1024)
    Handler.content, Handler.broken = {"/a.jsonl": LINES}, {"/a.jsonl"}
    tally = indexer.Tally()
    with pytest.raises(CognateError, match="a.jsonl cannot be read: the server answered 503 Slow Down"):
        indexer.build(f"{server}/a.jsonl?signature=1", tiny_bundle, tmp_path / "index", tally=tally)
    assert tally.kept > 0
    Handler.broken = set()
    resumed = indexer.Tally()
    # A signed URL is another one each time.
    manifest = indexer.build(f"{server}/a.jsonl?signature=2", tiny_bundle, tmp_path / "index", tally=resumed)
    assert (resumed.resumed, manifest.count) == (tally.kept, 500)
    assert b"signature" not in b"".join(path.read_bytes() for path in (tmp_path / "index").iterdir())


# SQL


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = tmp_path / "faq.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE faq (number INTEGER, question TEXT, topic TEXT, more TEXT)")
        rows = [(n, text, f"t{n % 3}", '{"n": 1}' if n % 2 else None) for n, text in enumerate(texts(300))]
        connection.executemany("INSERT INTO faq VALUES (?, ?, ?, ?)", rows)
    return f"sqlite:///{path}"


QUERY = "SELECT number AS id, question AS text, topic AS label, more AS attributes FROM faq ORDER BY number"


def test_the_rows_of_a_query_become_records(database: str, tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = indexer.build(indexer.sql_source(database, QUERY), tiny_bundle, tmp_path / "index")
    assert manifest.count == 300
    with contextlib.closing(Index(tmp_path / "index")) as index:
        first, second = index.records([0, 1])
    assert (first.id, first.label, first.attributes) == ("0", "t0", None)
    assert (second.id, second.text, second.attributes) == ("1", texts(2)[1], {"n": 1})


def test_what_is_wrong_with_a_query_is_one_sentence(database: str) -> None:
    def rows(database: str, query: str, rejects: Rejects | None = None) -> int:
        return len(list(indexer.sql_source(database, query).read(rejects)))

    for url, query, message in (
        (database, "SELECT missing", r"sqlite:///.*faq.db: the query failed after 0 rows: no such column"),
        (database, "SELECT question FROM faq", "the query has no column named text; it has question"),
        (database, "SELECT 7 AS text", r"faq.db:1: text must be a string"),
        (database, "DROP TABLE faq", r"faq.db: the query failed after 0 rows: attempt to write a readonly"),
        (database, "INSERT INTO faq VALUES (1, 'a', 'b', 'c')", r"attempt to write a readonly database"),
        (database, "PRAGMA cache_size = 9", r"sqlite:///.*faq.db: the query gives no rows; give a SELECT"),
        (database + "x", QUERY, "the database .*x does not exist"),
        ("no url with a secret", QUERY, "--database is no URL"),
        ("postgresql+nosuch://u:secret@h/d", QUERY, "--database is no URL"),
    ):
        with pytest.raises(CognateError, match=message) as error:
            rows(url, query)
        assert "secret" not in str(error.value)
    assert rows(database, QUERY) == 300
    told: list[RecordError] = []
    assert rows(database, "SELECT 7 AS text UNION SELECT 'a' ORDER BY 1 DESC", Rejects(told.append)) == 1
    assert [error.line for error in told] == [2]


def test_a_query_that_gives_other_rows_cannot_be_resumed(
    database: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.batch_job.CHUNK", 64)

    def stop(count: int) -> None:
        if tally.kept:
            raise KeyboardInterrupt

    tally = indexer.Tally()
    source = indexer.sql_source(database, QUERY)
    with pytest.raises(KeyboardInterrupt):
        indexer.build(source, tiny_bundle, tmp_path / "index", tally=tally, on_progress=stop)
    with contextlib.closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("UPDATE faq SET topic = 'other' WHERE number = 3")
    with pytest.raises(CognateError, match="the first 64 records of sqlite:.* are not those"):
        indexer.build(source, tiny_bundle, tmp_path / "index")
