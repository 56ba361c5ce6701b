"""Indexes merged, verified and exported."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import indexer
from cognate.artifact import publishing
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError, FingerprintError
from cognate.index import Index, IndexWriter
from tests.indexer.test_batch_job import texts, write

COUNT = 100


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 100 records, every second with label and attributes."""
    folder = tmp_path_factory.mktemp("whole")
    records = [
        {"text": text, "id": f"r{n}", **({"label": "ü", "attributes": {"n": [n]}} if n % 2 else {})}
        for n, text in enumerate(texts(COUNT))
    ]
    indexer.build(write(folder / "records.jsonl", records), tiny_bundle, folder / "index")
    return folder / "index"


def build(bundle: Path, destination: Path, records: list[dict[str, object]]) -> Path:
    indexer.build(write(destination.with_suffix(".jsonl"), records), bundle, destination)
    return destination


def test_a_merged_index_has_the_records_and_vectors_of_all(
    folder: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.index_merge.CHUNK", 30)
    other = build(tiny_bundle, tmp_path / "other", [{"text": "new", "id": "n"}, {"text": "newer", "id": "m"}])
    manifest = indexer.merge([folder, other], tmp_path / "both")
    assert (manifest.count, manifest.recall_at_10) == (COUNT + 2, 1.0)
    with (
        contextlib.closing(Index(tmp_path / "both", fingerprint=Encoder(tiny_bundle).fingerprint)) as both,
        contextlib.closing(Index(folder)) as first,
    ):
        rows = range(COUNT)
        assert (both.vectors(rows) == first.vectors(rows)).all()
        assert [record.id for record in both.records([1, COUNT, COUNT + 1])] == ["r1", "n", "m"]
        assert both.records([1])[0].attributes == {"n": [1]}
    assert indexer.verify(tmp_path / "both", tiny_bundle).min_cosine > 0.99999


def test_ids_that_clash_are_refused_or_the_last_one_wins(tiny_bundle: Path, tmp_path: Path) -> None:
    first = build(tiny_bundle, tmp_path / "a", [{"text": "old", "id": "x"}, {"text": "other", "id": "y"}])
    second = build(tiny_bundle, tmp_path / "b", [{"text": "new", "id": "x"}])
    with pytest.raises(CognateError, match="a and .*b both have a record with the id 'x'; .*last"):
        indexer.merge([first, second], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert indexer.merge([first, second], tmp_path / "c", on_duplicate="last").count == 2
    with contextlib.closing(Index(tmp_path / "c")) as index:
        assert [(record.id, record.text) for record in index.records([0, 1])] == [
            ("y", "other"),
            ("x", "new"),
        ]


def test_what_cannot_be_merged_is_refused(
    folder: Path, tiny_bundle: Path, minilm_bundle: Path, tmp_path: Path
) -> None:
    other = build(minilm_bundle, tmp_path / "other", [{"text": "new"}])
    with pytest.raises(FingerprintError, match="other has vectors of another bundle"):
        indexer.merge([folder, other], tmp_path / "both")
    with pytest.raises(CognateError, match="at least two indexes"):
        indexer.merge([folder], tmp_path / "both")
    with pytest.raises(ArtifactError, match="exists; give another --out"):
        indexer.merge([folder, folder], folder)


def test_an_index_is_verified_by_encoding_samples_again(
    folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    verified = indexer.verify(folder, tiny_bundle, samples=30)
    assert (verified.samples, verified.min_cosine > 0.99999) == (30, True)
    encoder = Encoder(tiny_bundle)
    # Of another text, but written as if they were its.
    vectors = encoder.encode(["door", "key"])
    with (
        publishing(tmp_path / "wrong", "index") as partial,
        IndexWriter(partial, encoder.dimension) as writer,
    ):
        with contextlib.closing(Index(folder)) as index:
            writer.add(index.records([0, 1]), vectors)
        writer.finish(encoder.bundle)
    wrong = indexer.verify(tmp_path / "wrong", tiny_bundle)
    assert wrong.min_cosine < 0.999
    assert wrong.worst_id in ("r0", "r1")


def test_verify_refuses_another_bundle(folder: Path, minilm_bundle: Path) -> None:
    with pytest.raises(FingerprintError, match="was built with another bundle"):
        indexer.verify(folder, minilm_bundle)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_an_export_holds_all_vectors_and_records(
    folder: Path, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.index_export.ROWS", 30)
    path = tmp_path / f"all.{ending}"
    assert indexer.export(folder, path) == [path]
    if ending == "parquet":
        table = pyarrow.parquet.read_table(path)
    else:
        with pyarrow.ipc.open_file(path) as file:
            table = file.read_all()
    with contextlib.closing(Index(folder)) as index:
        records, vectors = index.records(range(COUNT)), index.vectors(range(COUNT))
        fingerprint = index.manifest.fingerprint
    assert table.schema.metadata[b"fingerprint"].decode() == fingerprint
    assert (np.stack(table["vector"].to_numpy()) == vectors).all()
    rows = table.drop_columns("vector").to_pylist()
    assert [row["id"] for row in rows] == [record.id for record in records]
    assert [row["text"] for row in rows] == [record.text for record in records]
    assert [row["label"] for row in rows] == [record.label for record in records]
    assert json.loads(rows[1]["attributes"]) == {"n": [1]}
    assert rows[0]["attributes"] is None


def test_an_exported_file_is_a_record_file(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    indexer.export(folder, tmp_path / "all.parquet")
    indexer.build(tmp_path / "all.parquet", tiny_bundle, tmp_path / "again")
    with contextlib.closing(Index(folder)) as old, contextlib.closing(Index(tmp_path / "again")) as new:
        for one, other in zip(old.records(range(COUNT)), new.records(range(COUNT)), strict=True):
            assert (one.id, one.text, one.label) == (other.id, other.text, other.label)
            assert one.attributes == other.attributes


def test_npy_holds_the_vectors_with_the_records_beside_it(folder: Path, tmp_path: Path) -> None:
    paths = indexer.export(folder, tmp_path / "all.npy")
    assert [path.name for path in paths] == ["all.npy", "all.jsonl"]
    vectors = np.load(paths[0], mmap_mode="r")
    lines = [json.loads(line) for line in paths[1].read_text().splitlines()]
    with contextlib.closing(Index(folder)) as index:
        assert (vectors == index.vectors(range(COUNT))).all()
        assert [line["id"] for line in lines] == [record.id for record in index.records(range(COUNT))]
    assert lines[1]["attributes"] == {"n": [1]}
    assert sorted(lines[0]) == ["id", "text"]


def test_an_export_that_cannot_be_written_leaves_nothing(
    folder: Path, tmp_path: Path, small_disk: Path
) -> None:
    for ending in ("parquet", "arrow", "npy"):
        path = small_disk / f"all.{ending}"
        (small_disk / "filler").write_bytes(bytes(60 * 1024))
        with pytest.raises(CognateError, match=f"all.{ending} could not be written: No space left on device"):
            indexer.export(folder, path)
        assert [each.name for each in small_disk.iterdir()] == ["filler"]
    path = tmp_path / "all.npy"
    (tmp_path / "all.jsonl").write_text("mine")
    with pytest.raises(CognateError, match="all.jsonl exists; give another --out, or --force"):
        indexer.export(folder, path)
    with pytest.raises(CognateError, match=r"all.csv has none of the endings .parquet, .arrow, .npy"):
        indexer.export(folder, tmp_path / "all.csv")
    assert (tmp_path / "all.jsonl").read_text() == "mine"
