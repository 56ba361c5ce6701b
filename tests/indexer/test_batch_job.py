"""``indexer.build``: the index of a record file, or one sentence and nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

import indexer
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError, RecordError
from cognate.exact import exact_top_k
from cognate.index import Index
from cognate.records import Rejects


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts(count: int) -> list[str]:
    return [f"{'the door ' * (number % 7)}how do i open {number}" for number in range(count)]


def test_every_record_is_found_by_its_own_text(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several chunks, the last one not full.
    monkeypatch.setattr("indexer.batch_job.CHUNK", 64)
    records = [
        {"text": text, "label": f"l{n}", "id": f"r{n}", "attributes": {"n": n}}
        for n, text in enumerate(texts(200))
    ]
    done: list[int] = []
    manifest = indexer.build(
        write(tmp_path / "records.jsonl", records), tiny_bundle, tmp_path / "index", on_progress=done.append
    )
    assert (manifest.count, manifest.recall_at_10, sum(done)) == (200, 1.0, 200)
    encoder = Encoder(tiny_bundle)
    index = Index(tmp_path / "index", fingerprint=encoder.fingerprint)
    vectors = encoder.encode(texts(200))
    scores, rows = exact_top_k(vectors, vectors, 5)
    for number, hits in enumerate(index.search(vectors, 5)):
        assert [hit.score for hit in hits] == pytest.approx(scores[number].tolist(), abs=1e-5)
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        best = {hit.id: hit for hit in hits if hit.score > 1 - 1e-5}
        assert best[f"r{number}"].text == records[number]["text"]
        assert best[f"r{number}"].label == f"l{number}"
        assert best[f"r{number}"].attributes == {"n": number}
    assert np.isfinite(scores).all()
    assert rows.shape == (200, 5)


def test_records_without_an_id_are_numbered(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "records.jsonl", [{"text": text} for text in texts(3)])
    indexer.build(source, tiny_bundle, tmp_path / "index")
    assert [record.id for record in Index(tmp_path / "index").records([0, 1, 2])] == ["0", "1", "2"]


def test_bad_lines_stop_the_job_or_are_told(tiny_bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "records.jsonl"
    source.write_text('{"text": "a"}\n{"text": 7}\nnonsense\n{"text": "b"}\n')
    with pytest.raises(RecordError, match=r"records.jsonl:2: text must be a string, not a number"):
        indexer.build(source, tiny_bundle, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    told: list[RecordError] = []
    manifest = indexer.build(source, tiny_bundle, tmp_path / "index", rejects=Rejects(told.append))
    assert manifest.count == 2
    assert [error.line for error in told] == [2, 3]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "has no records"),
        ([{"text": "a", "id": "x"}, {"text": "b", "id": "x"}], "has the id 'x', which an earlier record has"),
        ([{"text": "a", "id": "1"}, {"text": "b"}], "has the id '1', which an earlier record has"),
    ],
)
def test_records_that_make_no_index_are_refused(
    records: list[dict[str, object]], message: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(CognateError, match=message):
        indexer.build(write(tmp_path / "records.jsonl", records), tiny_bundle, tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_an_interrupted_job_leaves_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    source = write(tmp_path / "records.jsonl", [{"text": text} for text in texts(3)])
    with pytest.raises(KeyboardInterrupt):
        indexer.build(source, tiny_bundle, tmp_path / "index", on_progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_an_existing_index_is_replaced_only_with_force(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "records.jsonl", [{"text": text} for text in texts(3)])
    indexer.build(source, tiny_bundle, tmp_path / "index")
    with pytest.raises(ArtifactError, match="exists.*--force"):
        indexer.build(source, tiny_bundle, tmp_path / "index")
    write(source, [{"text": "another"}])
    assert indexer.build(source, tiny_bundle, tmp_path / "index", force=True).count == 1
    assert Index(tmp_path / "index").records([0])[0].text == "another"


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "records.jsonl", [{"text": "a"}])
    with pytest.raises(ArtifactError, match="does not exist; give the folder of a bundle"):
        indexer.build(source, tmp_path / "nothing", tmp_path / "index")


def test_memory_does_not_grow_with_the_number_of_records(tiny_bundle: Path, tmp_path: Path) -> None:
    """Ten times the records take less than their vectors and texts would: nothing is collected."""
    import subprocess
    import sys

    program = (
        "import pathlib, re, sys, indexer; indexer.build(*sys.argv[1:4]);"
        # Not getrusage, which counts the process that this one was forked from.
        "print(re.search(r'VmHWM:\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])"
    )
    peaks = []
    padding = {"pad": "x" * 2000}
    for count in (5_000, 50_000):
        source = write(
            tmp_path / f"{count}.jsonl", [{"text": f"door {n}", "attributes": padding} for n in range(count)]
        )
        arguments = [
            sys.executable,
            "-c",
            program,
            str(source),
            str(tiny_bundle),
            str(tmp_path / f"i{count}"),
        ]
        peaks.append(int(subprocess.run(arguments, check=True, capture_output=True).stdout) * 1024)
    assert peaks[1] - peaks[0] < 45_000 * (2000 + 32 * 4) / 2
