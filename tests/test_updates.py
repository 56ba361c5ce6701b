"""Updates of an index: what a search finds, what survives, and what is refused."""

import gc
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cognate.artifact import publishing
from cognate.bundle import Bundle
from cognate.errors import ArtifactError, CognateError, FingerprintError
from cognate.filters import parse
from cognate.index import Index, IndexWriter
from cognate.index_kinds import Layout
from cognate.narrowing import Narrowing
from cognate.records import Record
from cognate.update_log import LOG, Change, State, UpdateLog, read_log
from cognate.updates import IndexUpdates, UpdatedIndex, open_index, state_of, updates_folder

Vectors = NDArray[np.float32]

COUNT, DIMENSION = 40, 32


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def unit_vectors(count: int, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    normalised: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalised


def build(folder: Path, bundle: Bundle, count: int = COUNT, layout: Layout | None = None) -> Path:
    records = [Record(f"text {row}", f"label {row}", f"id-{row}", {"row": row}) for row in range(count)]
    with publishing(folder, "index") as partial, IndexWriter(partial, DIMENSION, layout) as writer:
        writer.add(records, unit_vectors(count))
        writer.finish(bundle)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    return build(tmp_path_factory.mktemp("updates") / "index", bundle)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """An index of ten records."""
    return build(tmp_path_factory.mktemp("updates") / "ten", bundle, 10)


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "index")
    return tmp_path / "index"


def written(*ids: str, text: str = "new") -> list[Record]:
    return [Record(f"{text} {name}", None, name, {"of": text}) for name in ids]


def texts_of(index: Index) -> dict[str, str]:
    """Every record that a search finds, by id; that none is found twice is checked."""
    (hits,) = index.search(unit_vectors(1, seed=99), 10**6)
    assert len({hit.id for hit in hits}) == len(hits) == index.count
    return {hit.id: hit.text for hit in hits}


def texts_of_folder(folder: Path) -> dict[str, str]:
    """``texts_of``, of an index that is opened for it."""
    index = open_index(folder)
    try:
        return texts_of(index)
    finally:
        index.close()


def close(updates: IndexUpdates) -> None:
    """Close all of it."""
    updates.close()
    updates.index.close()


ALL = {f"id-{row}": f"text {row}" for row in range(COUNT)}


@pytest.fixture
def disk(small_disk: Path) -> Iterator[Path]:
    """A disk of 512 KiB, which an index and its log fit on."""
    subprocess.run(["mount", "-o", "remount,size=512k", small_disk], check=True)
    yield small_disk
    # A traceback may hold a file of what failed, and the disk is to be unmounted.
    gc.collect()


# What a search finds.


def test_what_is_written_is_found_with_the_rest_and_what_is_deleted_is_not(folder: Path) -> None:
    updates = IndexUpdates(folder)
    vectors = unit_vectors(2, seed=1)
    applied = updates.apply(written("id-3", "new-1"), vectors, ["id-5", "no such id"])
    assert (applied.inserted, applied.replaced, applied.deleted, applied.revision) == (1, 1, 1, 1)
    (found,), (deleted,) = updates.index.search(np.stack([vectors[0], unit_vectors(COUNT)[5]]), 1)
    assert (found.id, found.text, found.label, found.attributes) == ("id-3", "new id-3", None, {"of": "new"})
    assert found.score == pytest.approx(1, abs=1e-6)
    assert deleted.id != "id-5"
    expected = {**ALL, "id-3": "new id-3", "new-1": "new new-1"}
    del expected["id-5"]
    assert texts_of(updates.index) == expected
    updates.close()
    assert texts_of(open_index(folder)) == expected
    # The index itself is as it was built.
    assert texts_of(Index(folder)) == ALL


_Operation = tuple[str, list[int], int]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["write", "delete", "compact", "open"]),
            st.lists(st.integers(0, 14), max_size=6),
            st.integers(0, 2**32 - 1),
        ),
        max_size=8,
    ),
    st.integers(1, 20),
)
@settings(max_examples=20, deadline=None)
def test_an_updated_index_is_as_one_that_was_built_from_what_is_left(
    tmp_path_factory: pytest.TempPathFactory, ten: Path, operations: list[_Operation], top_k: int
) -> None:
    folder = tmp_path_factory.mktemp("property") / "index"
    shutil.copytree(ten, folder)
    model = {f"id-{row}": (f"text {row}", vector) for row, vector in enumerate(unit_vectors(10))}
    updates = IndexUpdates(folder)
    for operation, numbers, seed in operations:
        ids = [f"id-{number}" for number in numbers]
        if operation == "write":
            vectors = unit_vectors(len(ids), seed)
            updates.apply(written(*ids, text=str(seed)), vectors)
            model.update((name, (f"{seed} {name}", vectors[n])) for n, name in enumerate(ids))
        elif operation == "delete":
            assert updates.apply(deletes=ids).deleted == len(model.keys() & set(ids))
            for name in ids:
                model.pop(name, None)
        elif operation == "compact":
            updates.compact()
        else:
            updates.close()
            updates.index.close()
            updates = IndexUpdates(folder)
    query = unit_vectors(1, seed=77)
    ranked = sorted(model.items(), key=lambda item: -float(item[1][1] @ query[0]))[:top_k]
    (hits,) = updates.index.search(query, top_k)
    assert [(hit.id, hit.text) for hit in hits] == [(name, text) for name, (text, _) in ranked]
    assert updates.index.count == len(model)
    rows = updates.index.rows_of([*model, "no such id"])
    assert rows.keys() == model.keys()
    for name, row in rows.items():
        assert updates.index.records([row])[0].text == model[name][0]
        np.testing.assert_array_equal(updates.index.vectors([row])[0], model[name][1])
    updates.close()
    updates.index.close()


@pytest.mark.parametrize(
    "layout", [Layout("hnsw", "int8"), Layout("ivf_flat"), Layout(factory="IVF4,Flat")], ids=str
)
def test_an_index_of_any_kind_is_updated_and_stays_of_its_kind(
    tmp_path: Path, bundle: Bundle, layout: Layout
) -> None:
    updates = IndexUpdates(build(tmp_path / "index", bundle, 400, layout))
    kind = updates.index.manifest.kind, updates.index.manifest.storage
    assert kind[0] != "flat"
    deleted = [f"id-{row}" for row in range(0, 400, 2)]
    updates.apply(written("new"), unit_vectors(1, seed=5), deleted)
    for _ in range(2):
        hits = updates.index.search(unit_vectors(400), 5)
        assert not {hit.id for found in hits for hit in found} & set(deleted)
        assert updates.index.search(unit_vectors(1, seed=5), 1)[0][0].id == "new"
        assert (updates.index.manifest.kind, updates.index.manifest.storage) == kind
        updates.compact()


@pytest.mark.parametrize(
    "layout", [Layout(), Layout("hnsw", "int8")], ids=lambda layout: f"{layout.kind}-{layout.storage}"
)
def test_filters_pages_and_groups_see_what_is_there_now(
    tmp_path: Path, bundle: Bundle, layout: Layout
) -> None:
    updates = IndexUpdates(build(tmp_path / "index", bundle, 300, layout))
    new = [Record(f"new {n}", f"label {n % 3}", f"id-{n}", {"row": n + 1000}) for n in range(0, 600, 4)]
    vectors = unit_vectors(len(new), seed=4)
    updates.apply(new, vectors, [f"id-{n}" for n in range(1, 300, 3)])
    model = {f"id-{n}": (n, f"label {n}", vector) for n, vector in enumerate(unit_vectors(300)) if n % 3 != 1}
    model.update(
        (f"id-{n}", (n + 1000, f"label {n % 3}", vectors[number]))
        for number, n in enumerate(range(0, 600, 4))
    )
    query = unit_vectors(1, seed=8)
    for text, keeps in (
        ("row < 50", lambda row, label: row < 50),
        ("row >= 1000", lambda row, label: row >= 1000),
        ("row < 150 or row > 1200", lambda row, label: row < 150 or row > 1200),
        ("not row >= 1000", lambda row, label: row < 1000),
        ("row < -1", lambda row, label: False),
    ):
        for _ in range(2):
            kept = {name: value for name, value in model.items() if keeps(*value[:2])}
            ranked = sorted(kept, key=lambda name: -float(kept[name][2] @ query[0]))
            narrowing = Narrowing(filter=parse(text), exclude_ids=tuple(ranked[:2]))
            (hits,) = updates.index.search(query, 1000, narrowing=narrowing, accuracy="exact")
            assert [hit.id for hit in hits] == ranked[2:]
            pages = [
                hit.id
                for offset in range(0, len(ranked), 37)
                for hit in updates.index.search(
                    query, 37, narrowing=Narrowing(filter=parse(text), offset=offset)
                )[0]
            ]
            assert pages == ranked
            labels = {value[1] for value in kept.values()}
            (groups,) = updates.index.search(
                query, 1000, narrowing=Narrowing(filter=parse(text), group_by_label=True)
            )
            assert len(groups) == len(labels)
            assert {hit.label for hit in groups} == labels
            updates.compact()


def test_what_a_filter_let_through_is_found_whatever_is_updated_meanwhile(folder: Path) -> None:
    updates = IndexUpdates(folder)
    updates.apply(written("a", "id-1"), unit_vectors(2, seed=1))
    matching = updates.index.matching(parse('of = "new" or row < 5'))
    _, before = updates.index.search_rows(unit_vectors(1), 100, matching=matching)
    updates.apply(written("a", "b", "id-2"), unit_vectors(3, seed=2), ["id-3"])
    _, after = updates.index.search_rows(unit_vectors(1), 100, matching=matching)
    assert before.shape == (1, 6)
    np.testing.assert_array_equal(before, after)


def test_what_a_search_found_is_fetched_whatever_is_updated_meanwhile(folder: Path) -> None:
    updates = IndexUpdates(folder)
    updates.apply(written("id-1", "a"), unit_vectors(2, seed=1))
    _, rows = updates.index.search_rows(unit_vectors(1), COUNT + 1)
    before = [record.text for record in updates.index.records(rows[0].tolist())]
    updates.apply(written("a", "b", text="newer"), unit_vectors(2, seed=2), ["id-2"])
    assert [record.text for record in updates.index.records(rows[0].tolist())] == before


def test_each_search_sees_a_batch_wholly_or_not_at_all(folder: Path) -> None:
    updates = IndexUpdates(folder)
    batches = [[f"{name}-{batch}" for name in "abc"] for batch in range(60)]
    done = threading.Event()
    seen: list[set[str]] = []

    def keep_searching() -> None:
        index = updates.index
        while not done.is_set():
            seen.append({hit.id for hit in index.search(unit_vectors(1), 1000)[0]} - ALL.keys())

    searching = threading.Thread(target=keep_searching)
    searching.start()
    try:
        for number, batch in enumerate(batches):
            before = batches[number - 1] if number else []
            updates.apply(written(*batch), unit_vectors(3, seed=number), before)
    finally:
        done.set()
        searching.join()
    assert all(ids == set() or sorted(ids) in batches for ids in seen)


def test_an_index_is_emptied_compacted_and_filled_again(folder: Path) -> None:
    updates = IndexUpdates(folder)
    updates.apply(deletes=list(ALL))
    assert texts_of(updates.index) == {}
    assert updates.compact()
    assert texts_of(updates.index) == {}
    updates.apply(written("a"), unit_vectors(1))
    assert texts_of(updates.index) == {"a": "new a"}


# Compaction.


def test_what_is_updated_during_a_compaction_is_there_after_it(folder: Path) -> None:
    updates = IndexUpdates(folder)
    updates.apply(written("a", "b", "id-1"), unit_vectors(3, seed=1), ["id-2"])
    base = updates.write_base()
    assert base is not None
    updates.apply(written("b", "id-2", text="newer"), unit_vectors(2, seed=2), ["a", "id-3"])
    expected = texts_of(updates.index)
    assert texts_of(updates.switch_to(base)) == expected
    assert (updates.index.changed, updates.index.state.revision) == (5, 2)
    updates.close()
    assert texts_of(open_index(folder)) == expected
    assert len(read_log(updates_folder(folder))[1]) == 4  # type: ignore[index]


def test_a_compacted_index_holds_all_in_itself_and_leaves_nothing_else(folder: Path) -> None:
    updates = IndexUpdates(folder)
    for number in range(3):
        updates.apply(written(f"new-{number}"), unit_vectors(1, seed=number))
        assert updates.compact()
        assert not updates.compact()
    updates.close()
    base = updates_folder(folder) / "base-3"
    assert sorted(path.name for path in updates_folder(folder).iterdir()) == ["base-3", "lock", LOG]
    assert texts_of(Index(base)) == {**ALL, **{f"new-{n}": f"new new-{n}" for n in range(3)}}
    assert state_of(folder) == State(Index(folder).version, "base-3", Index(base).version, 3)


def test_who_opened_an_index_before_it_was_compacted_still_searches_it(folder: Path) -> None:
    updates = IndexUpdates(folder)
    updates.apply(written("a"), unit_vectors(1))
    updates.compact()
    reader = open_index(folder)
    updates.apply(written("b"), unit_vectors(1, seed=1))
    updates.compact()
    assert texts_of(reader) == {**ALL, "a": "new a"}
    assert texts_of(open_index(folder)) == {**ALL, "a": "new a", "b": "new b"}


def test_a_compaction_without_room_leaves_all_as_it_was(bundle: Bundle, disk: Path) -> None:
    folder = build(disk / "index", bundle, 5)
    updates = IndexUpdates(folder)
    updates.apply(written("a"), unit_vectors(1))
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free))
    with pytest.raises(ArtifactError, match="No space left on device"):
        updates.compact()
    assert len(texts_of(updates.index)) == 6
    filler.unlink()
    updates.apply(written("b"), unit_vectors(1))
    close(updates)
    assert len(texts_of_folder(folder)) == 7


# What is refused.


def test_of_two_records_with_one_id_the_last_counts_and_it_is_said(folder: Path) -> None:
    updates = IndexUpdates(folder)
    records = [*written("a", text="first"), *written("b"), *written("a", text="second")]
    applied = updates.apply(records, unit_vectors(3, seed=1))
    assert (applied.inserted, applied.superseded) == (2, 1)
    assert texts_of(updates.index)["a"] == "second a"
    assert updates.index.search(unit_vectors(3, seed=1)[2:], 1)[0][0].id == "a"


@pytest.mark.parametrize(
    ("records", "vectors", "says"),
    [
        (written("a"), unit_vectors(1)[:, :-1], r"shape \(1, 31\); 1 records of this index need \(1, 32\)"),
        (written("a"), unit_vectors(2), r"shape \(2, 32\)"),
        (written("a"), None, "vectors have shape"),
        (written("a"), unit_vectors(1) * np.nan, "not finite"),
        ([Record("text")], unit_vectors(1), "record 0 has no id"),
        (written("é" * 257), unit_vectors(1), "record 0 has an id of over 512 bytes"),
        ([Record("text", None, "a", {"n": [float("nan")]})], unit_vectors(1), "record 0 has attributes that"),
        (
            [Record("text", None, "a", {"n": 2**63})],
            unit_vectors(1),
            "a whole number of more than 64 bits",
        ),
    ],
)
def test_a_batch_with_something_wrong_is_refused_as_a_whole(
    folder: Path, records: Sequence[Record], vectors: Vectors, says: str
) -> None:
    updates = IndexUpdates(folder)
    with pytest.raises(CognateError, match=says):
        updates.apply(records, vectors, ["id-1"])
    assert updates.index.state.revision == 0
    assert texts_of(updates.index) == ALL


def test_vectors_of_another_bundle_are_refused(folder: Path) -> None:
    updates = IndexUpdates(folder)
    with pytest.raises(FingerprintError, match="another bundle"):
        updates.apply(written("a"), unit_vectors(1), fingerprint="0" * 64)
    updates.close()
    with pytest.raises(FingerprintError, match="another bundle"):
        IndexUpdates(folder, fingerprint="0" * 64)
    # Who was refused holds no lock.
    IndexUpdates(folder).close()


def test_nothing_is_written_beside_an_index_of_another_bundle(folder: Path) -> None:
    with pytest.raises(FingerprintError, match="another bundle"):
        IndexUpdates(folder, fingerprint="0" * 64)
    assert [path.name for path in updates_folder(folder).iterdir()] == ["lock"]


def test_one_at_a_time_updates_an_index(folder: Path) -> None:
    updates = IndexUpdates(folder)
    with pytest.raises(CognateError, match="being updated by another server or command"):
        IndexUpdates(folder)
    updates.apply(written("a"), unit_vectors(1))
    assert "a" in texts_of(open_index(folder))
    updates.close()
    with pytest.raises(CognateError, match="closed"):
        updates.apply(written("b"), unit_vectors(1))
    IndexUpdates(folder).close()


def test_updates_of_an_index_that_was_built_again_are_not_mixed_with_it(folder: Path, bundle: Bundle) -> None:
    updates = IndexUpdates(folder)
    updates.apply(written("a"), unit_vectors(1))
    updates.close()
    shutil.rmtree(folder)
    build(folder, bundle, 3)
    for opening in (open_index, IndexUpdates, state_of):
        with pytest.raises(ArtifactError, match="was built again as version .*, and .*holds updates of"):
            opening(folder)
    shutil.rmtree(updates_folder(folder))
    assert open_index(folder).count == 3


def test_on_a_full_disk_nothing_is_written_and_nothing_lost(bundle: Bundle, disk: Path) -> None:
    folder = build(disk / "index", bundle, 5)
    updates = IndexUpdates(folder)
    expected = {f"id-{row}" for row in range(5)}

    def write_on() -> None:
        for number in range(10_000):
            updates.apply(written(f"new-{number}"), unit_vectors(1, seed=number))
            expected.add(f"new-{number}")

    with pytest.raises(ArtifactError, match="could not be written: No space left on device; nothing"):
        write_on()
    assert texts_of(updates.index).keys() == expected
    close(updates)
    assert texts_of_folder(folder).keys() == expected


def test_a_damaged_log_is_refused(folder: Path) -> None:
    updates = IndexUpdates(folder)
    updates.apply(written("a", text="needle"), unit_vectors(1))
    updates.close()
    log = updates_folder(folder) / LOG
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b"needle", b"noodle"))
    with pytest.raises(ArtifactError, match="the checksum of record 'a' is not its own"):
        open_index(folder)
    log.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=LOG):
        IndexUpdates(folder)
    log.write_bytes(whole)
    with sqlite3.connect(log) as connection:
        connection.execute("UPDATE state SET format_version = 2")
    with pytest.raises(ArtifactError, match="format 2, newer than the 1"):
        open_index(folder)


def test_an_index_with_updates_is_read_where_nothing_can_be_written(folder: Path) -> None:
    updates = IndexUpdates(folder)
    updates.apply(written("a"), unit_vectors(1))
    updates.close()
    # At rest there is no journal to recover, which a read-only disk would not allow.
    assert sorted(path.name for path in updates_folder(folder).iterdir()) == ["lock", LOG]
    assert "a" in texts_of(open_index(folder))


# What survives.


def test_of_a_log_cut_at_any_byte_whole_batches_are_left(tmp_path: Path) -> None:
    log = UpdateLog(tmp_path, State("root", "", "root", 0))
    wal = tmp_path / f"{LOG}-wal"
    acknowledged = [wal.stat().st_size]
    vectors = unit_vectors(8)
    for number in range(8):
        log.append([Change(f"{number}{x}", Record(x, None, f"{number}{x}"), vectors[number]) for x in "ab"])
        acknowledged.append(wal.stat().st_size)
    main, journal = (tmp_path / LOG).read_bytes(), wal.read_bytes()
    log.close()
    cut = tmp_path / "cut"
    cut.mkdir()
    frame = 4096 + 24
    boundaries = {32 + frame * n + d for n in range(len(journal) // frame + 1) for d in (-1, 0, 1, 24)}
    lengths = sorted({0, 1, *boundaries, *range(0, len(journal), 251)} & set(range(len(journal) + 1)))
    assert len(lengths) > 250
    for length in lengths:
        (cut / LOG).write_bytes(main)
        (cut / f"{LOG}-wal").write_bytes(journal[:length])
        (cut / f"{LOG}-shm").unlink(missing_ok=True)
        found = read_log(cut)
        if found is None:
            assert length < acknowledged[0]
            continue
        revision = found[0].revision
        # As many as had been acknowledged when the log was so long, or one more that was about to be.
        assert revision >= sum(size <= length for size in acknowledged[1:])
        assert [change.id for change in found[1]] == [f"{n}{x}" for n in range(revision) for x in "ab"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_hundred_kills_every_acknowledged_update_is_there_once(folder: Path) -> None:
    script = Path(__file__).with_name("updates_killed.py")
    # One thread: its forks must not wait for threads that they do not have.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, script, folder, "120"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    kills, batches, compactions = map(int, finished.stdout.split())
    assert kills == 120
    assert batches > 120
    assert compactions > 10
    assert isinstance(open_index(folder), UpdatedIndex)
