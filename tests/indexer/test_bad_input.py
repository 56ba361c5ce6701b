"""What goes wrong in a job is one sentence, and what was done before it is kept."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import indexer
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError, RecordError
from cognate.index import Index
from cognate.records import Rejects
from indexer.batch_job import work_folder_of
from tests.indexer.test_batch_job import texts, write


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"in": value}
    return value


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a", "id": "x" * 1024 * 1024}, "id is longer than 512 bytes"),
        ({"text": "a", "attributes": nested(100)}, "attributes are nested deeper than 16 levels"),
    ],
)
def test_a_record_that_cannot_be_kept_stops_the_job_or_is_told(
    record: dict[str, object], message: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "records.jsonl", [{"text": "a"}, record, {"text": "b"}])
    with pytest.raises(RecordError, match=f"records.jsonl:2: {message}"):
        indexer.build(source, tiny_bundle, tmp_path / "index")
    told: list[RecordError] = []
    manifest = indexer.build(source, tiny_bundle, tmp_path / "index", rejects=Rejects(told.append))
    assert ([error.line for error in told], manifest.count) == ([2], 2)


def test_one_record_makes_an_index(tiny_bundle: Path, tmp_path: Path) -> None:
    indexer.build(write(tmp_path / "records.jsonl", [{"text": "a"}]), tiny_bundle, tmp_path / "index")
    with contextlib.closing(Index(tmp_path / "index")) as index:
        ((hit,),) = index.search(Encoder(tiny_bundle).encode(["a"]), 10)
    assert (hit.id, hit.text) == ("0", "a")
    assert indexer.verify(tmp_path / "index", tiny_bundle).samples == 1


def test_only_bad_records_make_none(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "records.jsonl", [{"text": 7}, {"text": ""}])
    with pytest.raises(CognateError, match="has no good record, so no index was made"):
        indexer.build(source, tiny_bundle, tmp_path / "index", rejects=Rejects(lambda error: None))
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_a_vector_that_is_not_finite_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Encoder.forward

    def broken(encoder: Encoder, batch: list[list[int]]) -> NDArray[np.float32]:
        vectors = forward(encoder, batch)
        vectors[0, 3] = np.nan
        return vectors

    monkeypatch.setattr(Encoder, "forward", broken)
    source = write(tmp_path / "records.jsonl", [{"text": "the door"}])
    with pytest.raises(
        CognateError, match=r"vector of record 1 \('the door'\) has a component that is not f"
    ):
        indexer.build(source, tiny_bundle, tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


def test_a_job_whose_disk_fills_goes_on_when_there_is_room(
    tiny_bundle: Path, tmp_path: Path, medium_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.batch_job.CHUNK", 64)
    records = [{"text": text, "attributes": {"pad": "x" * 2000}} for text in texts(800)]
    source = write(tmp_path / "records.jsonl", records)
    filler = medium_disk / "filler"
    kept: list[int] = []
    told: set[str] = set()
    # More room each time, until there is enough for the index of it all beside the work folder.
    for free in range(512, 8192, 512):
        filler.write_bytes(bytes(max(0, (8192 - free) * 1024 - used(work_folder_of(medium_disk / "index")))))
        tally = indexer.Tally()
        try:
            manifest = indexer.build(source, tiny_bundle, medium_disk / "index", tally=tally)
        except ArtifactError as error:
            told.add(str(error))
            assert not (medium_disk / "index").exists()
            assert tally.resumed == (kept[-1] if kept else 0)
            kept.append(tally.kept)
            filler.unlink()
            continue
        break
    assert told == {f"{medium_disk}/index could not be written: No space left on device"}
    assert kept == sorted(kept)
    assert kept[0] < 800
    assert 800 in kept
    assert manifest.count == 800
    assert tally.resumed == 800
    assert not work_folder_of(medium_disk / "index").exists()
    with contextlib.closing(Index(medium_disk / "index")) as index:
        assert [record.text for record in index.records(range(800))] == texts(800)
        assert json.dumps(index.records([799])[0].attributes) == json.dumps({"pad": "x" * 2000})
