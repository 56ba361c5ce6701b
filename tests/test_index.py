"""The index: exact cosine search in FAISS, its records read by row, and what it refuses."""

import json
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cognate.artifact import MANIFEST, publishing
from cognate.bundle import Bundle
from cognate.errors import ArtifactError, CognateError, FingerprintError
from cognate.exact import exact_top_k
from cognate.index import LOOKUP, VECTORS, Index, IndexManifest, IndexWriter
from cognate.record_file import OFFSETS, RECORDS
from cognate.records import Record, read_records

Vectors = NDArray[np.float32]

COUNT, DIMENSION = 300, 32


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def unit_vectors(count: int, dimension: int = DIMENSION, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    normalised: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalised


def build(
    destination: Path,
    vectors: Vectors,
    bundle: Bundle,
    records: Sequence[Record] | None = None,
    *,
    chunk: int = 64,
) -> IndexManifest:
    records = records or [Record(f"text {row}") for row in range(len(vectors))]
    with publishing(destination, "index") as folder, IndexWriter(folder, vectors.shape[1]) as writer:
        for start in range(0, len(vectors), chunk):
            writer.add(records[start : start + chunk], vectors[start : start + chunk])
        return writer.finish(bundle)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return unit_vectors(COUNT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vectors: Vectors, bundle: Bundle) -> Path:
    records = [
        Record(
            f"text {row}\n怎样",
            None if row % 3 else f"label {row}",
            f"id-{row}" if row % 2 else None,
            {"row": row, "nested": {"ü": [1, 2.5, None, True]}} if row % 5 else None,
        )
        for row in range(COUNT)
    ]
    destination = tmp_path_factory.mktemp("index") / "index"
    build(destination, vectors, bundle, records)
    return destination


@pytest.fixture(scope="module")
def index(folder: Path) -> Index:
    return Index(folder, device="cpu")


# Searching


@pytest.mark.parametrize("top_k", [1, 10, COUNT - 1, COUNT, COUNT + 1, 10**9])
@pytest.mark.parametrize("queries", [1, 3, 50])
def test_search_is_exact(index: Index, vectors: Vectors, top_k: int, queries: int) -> None:
    some = unit_vectors(queries, seed=queries)
    scores, rows = index.search_rows(some, top_k)
    expected_scores, expected_rows = exact_top_k(some, vectors, min(top_k, COUNT))
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


def test_an_exact_search_that_is_split_over_threads_finds_the_same(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cognate.index.SPLIT_BYTES", 1)
    monkeypatch.setattr("cognate.index.available_cores", lambda: 3)
    vectors = unit_vectors(202)
    build(tmp_path / "index", vectors, bundle)
    index = Index(tmp_path / "index", device="cpu")
    for queries in (1, 2, 3):
        for top_k in (1, 20, 66, 67, 68, 202):
            some = unit_vectors(queries, seed=7)
            scores, rows = index.search_rows(some, top_k)
            expected, expected_rows = exact_top_k(some, vectors, top_k)
            np.testing.assert_allclose(scores, expected, atol=1e-5)
            np.testing.assert_array_equal(rows, expected_rows)


def test_hits_carry_their_records_in_order_of_score(index: Index, vectors: Vectors) -> None:
    some = unit_vectors(4, seed=9)
    scores, rows = exact_top_k(some, vectors, 7)
    for hits, expected_scores, expected_rows in zip(index.search(some, 7), scores, rows, strict=True):
        assert [hit.score for hit in hits] == pytest.approx(expected_scores.tolist(), abs=1e-5)
        for hit, row in zip(hits, expected_rows.tolist(), strict=True):
            assert hit.id == (f"id-{row}" if row % 2 else str(row))
            assert hit.text == f"text {row}\n怎样"
            assert hit.label == (None if row % 3 else f"label {row}")
            assert hit.attributes == (
                {"row": row, "nested": {"ü": [1, 2.5, None, True]}} if row % 5 else None
            )


def test_a_record_finds_itself_with_a_score_of_1(index: Index, vectors: Vectors) -> None:
    hits = index.search(vectors[[5, 17]], 1)
    assert [hit.id for (hit,) in hits] == ["id-5", "id-17"]
    assert [hit.score for (hit,) in hits] == pytest.approx([1, 1], abs=1e-6)


def test_scores_are_cosines_even_where_rounding_would_pass_1(tmp_path: Path, bundle: Bundle) -> None:
    vectors = np.repeat(unit_vectors(500), 2, axis=0)
    build(tmp_path / "index", vectors, bundle)
    scores, _ = Index(tmp_path / "index").search_rows(vectors, 2)
    assert scores.max() <= 1.0


def test_as_many_hits_as_there_are_where_more_are_asked_for(index: Index) -> None:
    (hits,) = index.search(unit_vectors(1), 1_000_000)
    assert len(hits) == COUNT
    assert len({hit.id for hit in hits}) == COUNT


def test_more_records_than_one_statement_can_name_are_fetched(tmp_path: Path, bundle: Bundle) -> None:
    build(tmp_path / "index", unit_vectors(1200), bundle)
    (hits,) = Index(tmp_path / "index").search(unit_vectors(1), 1200)
    assert {hit.text for hit in hits} == {f"text {row}" for row in range(1200)}


def test_min_score_leaves_out_what_is_below_it(index: Index) -> None:
    query = unit_vectors(1, seed=3)
    (every,) = index.search(query, COUNT)
    threshold = every[20].score
    (some,) = index.search(query, COUNT, min_score=threshold)
    assert some == every[:21]
    assert index.search(query, COUNT, min_score=1.5) == [[]]
    assert index.search(query, COUNT, min_score=-1) == [every]


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_hits_of_equal_score_come_in_row_order(
    tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, count: int, queries: int, seed: int
) -> None:
    # Signs of the axes: unit vectors with many equal, exact products.
    random = np.random.default_rng(seed)
    vectors = np.eye(4, dtype=np.float32)[random.integers(0, 4, count)]
    vectors *= random.choice(np.array([-1, 1], np.float32), (count, 1))
    destination = tmp_path_factory.mktemp("index") / "index"
    build(destination, vectors, bundle)
    some = np.eye(4, dtype=np.float32)[random.integers(0, 4, queries)]
    scores, rows = Index(destination).search_rows(some, count)
    expected_scores, expected_rows = exact_top_k(some, vectors, count)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_no_query_gives_no_hits(index: Index) -> None:
    assert index.search(np.empty((0, DIMENSION), np.float32)) == []


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_below_1_is_refused(index: Index, top_k: int) -> None:
    with pytest.raises(CognateError, match=f"top_k is {top_k}; it must be at least 1"):
        index.search(unit_vectors(1), top_k)


@pytest.mark.parametrize(
    "shape", [(1, DIMENSION - 1), (1, DIMENSION + 1), (DIMENSION,), (1, 1, DIMENSION), (1, 0)]
)
def test_vectors_of_another_shape_are_refused(index: Index, shape: tuple[int, ...]) -> None:
    with pytest.raises(CognateError, match=r"have shape .*; the index needs \(queries, 32\)"):
        index.search(np.ones(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused(index: Index, value: float) -> None:
    some = unit_vectors(3)
    some[1, 7] = value
    with pytest.raises(CognateError, match="not finite"):
        index.search(some)


def test_records_are_fetched_by_row_in_the_order_asked_for(index: Index) -> None:
    assert [record.text for record in index.records([7, 0, 7])] == [f"text {row}\n怎样" for row in (7, 0, 7)]


def test_threads_may_share_an_index(index: Index) -> None:
    some = unit_vectors(64, seed=5)
    expected = index.search(some, 20)
    together = threading.Barrier(8)

    def search(_: int) -> bool:
        together.wait()
        return index.search(some, 20) == expected

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(search, range(8)))


# Writing


@pytest.mark.parametrize("count", [0, 1, 1000])
@pytest.mark.parametrize("dimension", [1, 7, 384])
def test_the_vectors_file_has_the_bytes_that_faiss_writes(
    tmp_path: Path, bundle: Bundle, count: int, dimension: int
) -> None:
    vectors = unit_vectors(count, dimension)
    build(tmp_path / "index", vectors, bundle, chunk=333)
    flat = faiss.IndexFlatIP(dimension)
    flat.add(vectors)
    faiss.write_index(flat, str(tmp_path / "faiss"))
    assert (tmp_path / "index" / VECTORS).read_bytes() == (tmp_path / "faiss").read_bytes()


def test_the_manifest_says_what_was_built(folder: Path, bundle: Bundle) -> None:
    manifest = IndexManifest.read(folder)
    assert (manifest.kind, manifest.metric, manifest.count, manifest.dimension) == (
        "flat",
        "cosine",
        COUNT,
        DIMENSION,
    )
    assert manifest.fingerprint == bundle.manifest.fingerprint
    assert manifest.recall_at_10 == 1.0
    assert sorted(path.name for path in folder.iterdir()) == [VECTORS, LOOKUP, MANIFEST, RECORDS, OFFSETS]


def test_an_empty_index_finds_nothing(tmp_path: Path, bundle: Bundle) -> None:
    manifest = build(tmp_path / "index", unit_vectors(0), bundle)
    assert (manifest.count, manifest.recall_at_10) == (0, None)
    index = Index(tmp_path / "index")
    assert index.count == 0
    assert index.search(unit_vectors(2), 5) == [[], []]


def test_records_of_one_text_all_count_in_the_recall(tmp_path: Path, bundle: Bundle) -> None:
    manifest = build(tmp_path / "index", np.repeat(unit_vectors(1), 50, axis=0), bundle)
    assert manifest.recall_at_10 == 1.0


def test_a_record_without_an_id_is_numbered_by_its_row(tmp_path: Path, bundle: Bundle) -> None:
    records = [Record("a"), Record("b", id="mine"), Record("c")]
    build(tmp_path / "index", unit_vectors(3), bundle, records, chunk=1)
    assert [record.id for record in Index(tmp_path / "index").records([0, 1, 2])] == ["0", "mine", "2"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["x", None, "x"], "record 3 has the id 'x'"), (["2", None, None], "record 3 has the id '2'")],
)
@pytest.mark.parametrize("chunk", [1, 3])
def test_two_records_with_one_id_are_refused_and_leave_nothing(
    tmp_path: Path, bundle: Bundle, ids: list[str | None], message: str, chunk: int
) -> None:
    records = [Record("a", id=name) for name in ids]
    with pytest.raises(CognateError, match=message):
        build(tmp_path / "index", unit_vectors(3), bundle, records, chunk=chunk)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}, b"x"])
def test_attributes_that_are_no_json_are_refused_and_leave_nothing(
    tmp_path: Path, bundle: Bundle, value: object
) -> None:
    records = [Record("a"), Record("b", attributes={"n": [value]})]
    with pytest.raises(CognateError, match="record 2 has attributes that are not made of JSON values"):
        build(tmp_path / "index", unit_vectors(2), bundle, records)
    assert list(tmp_path.iterdir()) == []


def test_attributes_with_a_whole_number_of_more_than_64_bits_are_refused(
    tmp_path: Path, bundle: Bundle
) -> None:
    build(
        tmp_path / "index",
        unit_vectors(2),
        bundle,
        [Record("a", attributes={"n": n}) for n in (-(2**63), 2**63 - 1)],
    )
    for value in (2**63, -(2**63) - 1, 10**400, 10**5000):
        with pytest.raises(CognateError, match="record 1 has attributes with a whole number of more than 64"):
            build(tmp_path / "other", unit_vectors(1), bundle, [Record("a", attributes={"n": [value]})])
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_two_indexes_of_the_same_records_are_two_versions(tmp_path: Path, bundle: Bundle) -> None:
    for name in ("one", "other"):
        build(tmp_path / name, unit_vectors(3), bundle)
    assert Index(tmp_path / "one").version != Index(tmp_path / "other").version


@pytest.mark.parametrize("text", ["x" * 60_000, "x"])
def test_a_full_disk_is_told_and_leaves_nothing(small_disk: Path, bundle: Bundle, text: str) -> None:
    # Either the records or, with short ones, the vectors do not fit.
    records = [Record(text) for _ in range(600)]
    with pytest.raises(ArtifactError, match="index could not be written: No space left on device"):
        build(small_disk / "index", unit_vectors(600), bundle, records)
    assert list(small_disk.iterdir()) == []


# Opening


@pytest.mark.parametrize("name", [VECTORS, RECORDS, MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "truncated", "byte changed"])
def test_a_damaged_index_is_refused(folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    copy = tmp_path / "index"
    shutil.copytree(folder, copy)
    content = (copy / name).read_bytes()
    if damage == "missing" or (damage == "byte changed" and name == MANIFEST):
        (copy / name).unlink()
    elif damage == "truncated":
        os.truncate(copy / name, len(content) - 1 if name != MANIFEST else 50)
    else:
        (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=str(copy)):
        Index(copy)


def test_vectors_that_do_not_fit_the_manifest_are_refused(
    folder: Path, tmp_path: Path, bundle: Bundle
) -> None:
    build(tmp_path / "index", unit_vectors(5), bundle)
    raw = json.loads((tmp_path / "index" / MANIFEST).read_text())
    for change in ({"count": 6}, {"dimension": 31}):
        (tmp_path / "index" / MANIFEST).write_text(json.dumps(raw | change))
        with pytest.raises(ArtifactError, match=r"index\.faiss does not fit its manifest"):
            Index(tmp_path / "index")


def test_an_index_of_another_bundle_is_refused(folder: Path, bundle: Bundle) -> None:
    Index(folder, fingerprint=bundle.manifest.fingerprint)
    with pytest.raises(
        FingerprintError, match=r"was built with another bundle .*; give the bundle that it was"
    ):
        Index(folder, fingerprint="0" * 64)


def test_a_bundle_is_no_index(tiny_bundle: Path) -> None:
    with pytest.raises(ArtifactError, match="is not an index: its manifest.json says 'bundle'"):
        Index(tiny_bundle)


def test_an_unknown_device_is_refused(folder: Path) -> None:
    with pytest.raises(CognateError, match="there is no device 'tpu'; choose one of auto, cpu, cuda"):
        Index(folder, device="tpu")  # type: ignore[arg-type]


def test_opening_and_searching_leaves_the_folder_as_it_was(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    Index(folder).search(unit_vectors(1))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_records_are_an_ordinary_record_file(folder: Path) -> None:
    assert [record.id for record in read_records(folder / RECORDS)] == [
        f"id-{row}" if row % 2 else str(row) for row in range(COUNT)
    ]


def test_what_records_are_looked_up_by_is_an_ordinary_sqlite_file(folder: Path) -> None:
    connection = sqlite3.connect(folder / LOOKUP)
    assert connection.execute("SELECT count(*), max(row) FROM records").fetchone() == (COUNT, COUNT - 1)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


# Closing, and what becomes of the folder


def test_an_index_answers_from_what_it_opened_whatever_is_in_its_place(
    tmp_path: Path, vectors: Vectors, bundle: Bundle
) -> None:
    for name in ("old", "new"):
        build(tmp_path / name, vectors, bundle, [Record(name, None, f"{name}-{row}") for row in range(COUNT)])
    index = Index(tmp_path / "old", device="cpu")
    shutil.rmtree(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "old")
    # In threads that the index has not seen before.
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda row: index.search(vectors[row : row + 1], 1), range(32)))
    assert [hits[0][0].id for hits in answers] == [f"old-{row}" for row in range(32)]
    assert index.version != Index(tmp_path / "old").version


def test_a_version_is_that_of_its_content(
    folder: Path, tmp_path: Path, vectors: Vectors, bundle: Bundle
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert Index(tmp_path / "copy").version == Index(folder).version
    assert re.fullmatch("[0-9a-f]{12}", Index(folder).version)
    build(tmp_path / "other", vectors, bundle)
    assert Index(tmp_path / "other").version != Index(folder).version


def test_a_closed_index_holds_nothing_and_says_so(folder: Path) -> None:
    process = psutil.Process()
    before = process.num_fds()
    index = Index(folder, device="cpu")
    index.close()
    index.close()
    assert process.num_fds() == before
    for search in (lambda: index.search(unit_vectors(1)), lambda: index.records([0])):
        with pytest.raises(CognateError, match="is closed; open it again"):
            search()


def rewritten(folder: Path, copy: Path, name: str, content: bytes) -> Path:
    """A copy with other content of a file, and a manifest that vouches for it."""
    shutil.copytree(folder, copy)
    (copy / name).write_bytes(content)
    fields = IndexManifest.read(folder).model_dump(
        exclude={"artifact", "format_version", "created_at", "versions", "files"}
    )
    IndexManifest.write(copy, **fields)
    return copy


def test_a_lookup_that_is_no_database_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"lookup\.sqlite has no table of records"):
        Index(rewritten(folder, tmp_path / "copy", LOOKUP, b"x" * 4096))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (RECORDS, b""),
        (RECORDS, b"x"),
        (OFFSETS, b""),
        (OFFSETS, bytes(8)),
        (OFFSETS, bytes(8 * (COUNT + 1))),
        (OFFSETS, bytes(8 * (COUNT + 1) - 1)),
    ],
)
def test_records_that_do_not_fit_the_manifest_are_refused(
    folder: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    with pytest.raises(ArtifactError, match=r"records\.jsonl does not fit its manifest; build the index"):
        Index(rewritten(folder, tmp_path / "copy", name, content))


@pytest.mark.parametrize("garbage", [b"x", b"\xff", b"[", b'{"text": 1}', b'"'])
def test_a_file_of_something_else_than_records_is_told(folder: Path, tmp_path: Path, garbage: bytes) -> None:
    size = (folder / RECORDS).stat().st_size
    index = Index(rewritten(folder, tmp_path / "copy", RECORDS, garbage.ljust(size, b" ")))
    with pytest.raises(ArtifactError, match=r"records\.jsonl holds what is no record: .*; build the index"):
        index.records([0])


def test_an_index_of_the_format_before_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    raw = json.loads((tmp_path / "copy" / MANIFEST).read_text())
    (tmp_path / "copy" / MANIFEST).write_text(json.dumps(raw | {"format_version": 1}))
    with pytest.raises(
        ArtifactError, match="has index format 1, older than the 2 that this cognate reads; write the index"
    ):
        Index(tmp_path / "copy")
