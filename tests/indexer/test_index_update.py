"""Updating an index from files: what it holds afterwards, and what is refused."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import indexer
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError, RecordError
from cognate.records import Rejects
from cognate.updates import IndexUpdates, open_index, updates_folder


@pytest.fixture(scope="module")
def built(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("update")
    (folder / "records.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(10)))
    indexer.build(folder / "records.jsonl", tiny_bundle, folder / "index")
    return folder / "index"


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "index")
    return tmp_path / "index"


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_records_are_deleted_then_written(index: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    upserts = write(
        tmp_path / "new.jsonl",
        '{"id": "3", "text": "open the door"}\n{"id": 3, "text": "close the door", "label": "door"}\n'
        '{"id": "é", "text": "learn"}\n{"id": "5", "text": "five"}\n',
    )
    deletes = write(tmp_path / "old.txt", "\ufeff5\r\n\n7\nno such id\n")
    done: list[int] = []
    updated = indexer.update(index, tiny_bundle, upserts=upserts, deletes=deletes, on_progress=done.append)
    assert (updated.inserted, updated.replaced, updated.deleted, updated.superseded) == (2, 1, 2, 1)
    assert updated.count == 10
    assert sum(done) == 4
    opened = open_index(index)
    (hits,) = opened.search(Encoder(tiny_bundle).encode(["close the door"]), 100)
    assert (hits[0].id, hits[0].text, hits[0].label) == ("3", "close the door", "door")
    assert {hit.id for hit in hits} == {"0", "1", "2", "3", "4", "5", "6", "8", "9", "é"}


def test_a_record_without_an_id_is_a_bad_line(index: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    upserts = write(tmp_path / "new.jsonl", '{"id": "a", "text": "a"}\n{"text": "b"}\n')
    with pytest.raises(RecordError, match=r"new\.jsonl:2: there is no id"):
        indexer.update(index, tiny_bundle, upserts=upserts)
    rejects = Rejects(lambda error: None)
    assert indexer.update(index, tiny_bundle, upserts=upserts, rejects=rejects).inserted == 1
    assert rejects.count == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"a\n" + b"x" * 513, r":2: the id is longer than 512 bytes"), (b"a\n\xff\n", ":2: invalid UTF-8")],
)
def test_a_line_that_is_no_id_is_told(
    index: Path, tiny_bundle: Path, tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "old.txt").write_bytes(content)
    with pytest.raises(RecordError, match=says):
        indexer.update(index, tiny_bundle, deletes=tmp_path / "old.txt")


def test_what_cannot_be_done_is_said(index: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    deletes = write(tmp_path / "old.txt", "5\n")
    with pytest.raises(CognateError, match="nothing to do"):
        indexer.update(index, tiny_bundle)
    with pytest.raises(CognateError, match=r"none\.txt cannot be read: No such file"):
        indexer.update(index, tiny_bundle, deletes=tmp_path / "none.txt")
    with pytest.raises(CognateError, match="does not exist"):
        indexer.update(tmp_path / "none", tiny_bundle, deletes=deletes)
    assert open_index(index).count == 10


def test_what_takes_whole_indexes_takes_their_updates(index: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    upserts = write(tmp_path / "new.jsonl", '{"id": "3", "text": "three"}\n{"id": "new", "text": "learn"}\n')
    indexer.update(index, tiny_bundle, upserts=upserts, deletes=write(tmp_path / "old.txt", "7\n"))
    expected = {**{str(n): f"text {n}" for n in range(10) if n != 7}, "3": "three", "new": "learn"}
    _, lines = indexer.export(index, tmp_path / "vectors.npy")
    exported = {row["id"]: row["text"] for row in map(json.loads, lines.read_text().splitlines())}
    assert exported == expected
    assert len(np.load(tmp_path / "vectors.npy")) == len(expected)
    verified = indexer.verify(index, tiny_bundle)
    assert verified.samples == len(expected)
    assert verified.min_cosine > 0.9999
    other = write(tmp_path / "other.jsonl", '{"id": "other", "text": "another"}\n')
    indexer.build(other, tiny_bundle, tmp_path / "other")
    indexer.merge([index, tmp_path / "other"], tmp_path / "both")
    indexer.build(str(index), tiny_bundle, tmp_path / "again", reuse=index)
    for folder, more in (("both", {"other": "another"}), ("again", {})):
        merged = open_index(tmp_path / folder)
        held = {record.id: record.text for record in merged.records(merged.all_rows().tolist())}
        assert held == expected | more
        assert verified.min_cosine == pytest.approx(indexer.verify(tmp_path / folder, tiny_bundle).min_cosine)


def test_no_index_is_put_where_updates_of_another_lie(index: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    records = write(tmp_path / "new.jsonl", '{"id": "new", "text": "learn"}\n')
    others = [tmp_path / "a", tmp_path / "b"]
    for other in others:
        indexer.build(records, tiny_bundle, other)
    indexer.update(index, tiny_bundle, upserts=records)
    refused = r"index\.updates holds updates of the index that was at .* give another --out, or delete"
    tally = indexer.Tally()
    with pytest.raises(ArtifactError, match=refused):
        indexer.build(records, tiny_bundle, index, force=True, tally=tally)
    with pytest.raises(ArtifactError, match=refused):
        indexer.merge(others, index, on_duplicate="last", force=True)
    assert tally.device == ""
    assert open_index(index).count == 11
    # Updates that were compacted are no less another index's, and neither are those of one that is gone.
    with contextlib.closing(IndexUpdates(index)) as updates:
        updates.compact()
    shutil.rmtree(index)
    with pytest.raises(ArtifactError, match=refused):
        indexer.build(records, tiny_bundle, index)
    shutil.rmtree(updates_folder(index))
    indexer.build(records, tiny_bundle, index)
    assert open_index(index).count == 1
