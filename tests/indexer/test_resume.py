"""A job that was killed goes on where it was, to the index of one that was not."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import indexer
from cognate.errors import CognateError, RecordError
from cognate.index import LOOKUP, VECTORS, Index
from cognate.record_file import OFFSETS, RECORDS
from indexer.batch_job import work_folder_of
from indexer.work_folder import JOURNAL
from tests.indexer.test_batch_job import texts, write

CHUNK = 64
KILLS = 40


def digests(index: Path) -> dict[str, str]:
    names = (VECTORS, LOOKUP, RECORDS, OFFSETS)
    return {name: hashlib.sha256((index / name).read_bytes()).hexdigest() for name in names}


def records(count: int) -> list[dict[str, object]]:
    """Some with an id, some with attributes, every fifth with the text of an earlier one."""
    lines = texts(count)
    return [
        {
            "text": lines[n // 3 if n % 5 == 4 else n],
            **({"id": f"r{n}", "label": str(n % 9)} if n % 2 else {"attributes": {"n": [n, "ü"]}}),
        }
        for n in range(count)
    ]


def run(source: Path, bundle: Path, destination: Path, resumed: Any, done: Any) -> None:
    indexer.batch_job.CHUNK = CHUNK

    def start(tally: indexer.Tally) -> None:
        done.value = tally.resumed
        resumed.value = tally.resumed

    def advance(count: int) -> None:
        done.value += count

    indexer.build(source, bundle, destination, on_progress=advance, on_start=start)


def test_a_job_killed_at_any_moment_loses_a_chunk_at_most_and_makes_the_same_index(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr("indexer.batch_job.CHUNK", CHUNK)
    source = write(tmp_path / "records.jsonl", records(3000))
    whole = tmp_path / "whole"
    indexer.build(source, tiny_bundle, whole)
    expected = digests(whole)
    # Real processes, of a parent that has imported all and opened nothing.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.indexer.test_resume"])
    randomly = random.Random(7)
    destination = tmp_path / "index"
    kills, resumes, longest, before = 0, 0, 1.0, 0
    while kills < KILLS:
        # Without a lock, which a job that is killed would hold for ever.
        resumed, done = processes.Value("q", -1, lock=False), processes.Value("q", 0, lock=False)
        job = processes.Process(target=run, args=(source, tiny_bundle, destination, resumed, done))
        job.start()
        started = time.monotonic()
        job.join(randomly.uniform(0, longest))
        if job.is_alive():
            os.kill(job.pid or 0, signal.SIGKILL)
            kills += 1
        job.join()
        longest = max(longest / 2, time.monotonic() - started) if job.exitcode == 0 else longest
        assert job.exitcode in (0, -signal.SIGKILL)
        if resumed.value >= 0:
            assert resumed.value >= before - CHUNK
            resumes += resumed.value > 0
            before = done.value
        if destination.exists():
            assert digests(destination) == expected
            destination.rename(tmp_path / f"done-{kills}-{randomly.random()}")
            # Killed after the index was in place, and before its work folder was removed.
            indexer.batch_job.discard(work_folder_of(destination))
            before = 0
    if not destination.exists():
        indexer.build(source, tiny_bundle, destination)
    assert digests(destination) == expected
    assert not work_folder_of(destination).exists()
    assert resumes >= 5


@pytest.fixture
def interrupted(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Interrupt a job after three chunks of 64, of 300 records."""
    monkeypatch.setattr("indexer.batch_job.CHUNK", CHUNK)

    def interrupt(source: Path | str = "", **options: Any) -> Path:
        tally = indexer.Tally()

        def stop(count: int) -> None:
            if tally.kept >= 3 * CHUNK:
                raise KeyboardInterrupt

        source = source or write(tmp_path / "records.jsonl", records(300))
        with pytest.raises(KeyboardInterrupt):
            indexer.build(source, tiny_bundle, tmp_path / "index", tally=tally, on_progress=stop, **options)
        assert not (tmp_path / "index").exists()
        return tmp_path / "records.jsonl"

    return interrupt


def test_an_interrupted_job_goes_on_where_it_was(
    interrupted: Callable[..., Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    source = interrupted()
    tally = indexer.Tally()
    assert indexer.build(source, tiny_bundle, tmp_path / "index", tally=tally).count == 300
    assert tally.resumed == 3 * CHUNK
    assert 0 < tally.encoded < 300 - 3 * CHUNK
    indexer.build(source, tiny_bundle, tmp_path / "whole")
    assert digests(tmp_path / "index") == digests(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "records.jsonl", "whole"]


def test_an_interrupted_job_beside_an_older_index_goes_on_to_the_same_vectors(
    interrupted: Callable[..., Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    indexer.build(write(tmp_path / "old.jsonl", records(200)[::2]), tiny_bundle, tmp_path / "old")
    source = interrupted(reuse=tmp_path / "old")
    with pytest.raises(CognateError, match="another index to reuse.*--restart"):
        indexer.build(source, tiny_bundle, tmp_path / "index")
    tally = indexer.Tally()
    indexer.build(source, tiny_bundle, tmp_path / "index", reuse=tmp_path / "old", tally=tally)
    assert (tally.resumed, tally.reused > 0) == (3 * CHUNK, True)
    indexer.build(source, tiny_bundle, tmp_path / "whole", reuse=tmp_path / "old")
    assert digests(tmp_path / "index") == digests(tmp_path / "whole")


def test_a_job_whose_input_or_settings_changed_is_refused_until_it_restarts(
    interrupted: Callable[..., Path], tiny_bundle: Path, minilm_bundle: Path, tmp_path: Path
) -> None:
    source = interrupted()
    original = source.read_text()
    source.write_text(original + '{"text": "one more"}\n')
    sizes = rf"another size of .*records.jsonl \({len(original)} bytes\) than this one \({len(original) + 21}"
    with pytest.raises(CognateError, match=sizes + r" bytes\); .*--restart"):
        indexer.build(source, tiny_bundle, tmp_path / "index")
    changed = original.replace("how do i open 7", "how do i close", 1)
    source.write_text(changed + " " * (len(original) - len(changed)))
    with pytest.raises(CognateError, match="the first 192 records of .*are not those.*--restart"):
        indexer.build(source, tiny_bundle, tmp_path / "index")
    source.write_text(original)
    with pytest.raises(CognateError, match="another bundle.*--restart"):
        indexer.build(source, minilm_bundle, tmp_path / "index")
    with pytest.raises(CognateError, match=r"another on_duplicate \(refuse\) than this one \(last\)"):
        indexer.build(source, tiny_bundle, tmp_path / "index", on_duplicate="last")
    other = write(tmp_path / "other.jsonl", records(3))
    with pytest.raises(CognateError, match="another input"):
        indexer.build(other, tiny_bundle, tmp_path / "index")
    tally = indexer.Tally()
    assert indexer.build(other, tiny_bundle, tmp_path / "index", restart=True, tally=tally).count == 3
    assert tally.resumed == 0


def test_a_damaged_work_folder_is_refused_until_the_job_restarts(
    interrupted: Callable[..., Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    source = interrupted()
    journal = work_folder_of(tmp_path / "index") / JOURNAL
    journal.with_name(JOURNAL + "-wal").unlink(missing_ok=True)
    journal.write_bytes(b"nonsense" * 1000)
    with pytest.raises(CognateError, match="is damaged .*--restart"):
        indexer.build(source, tiny_bundle, tmp_path / "index")
    assert indexer.build(source, tiny_bundle, tmp_path / "index", restart=True).count == 300


def test_two_jobs_of_one_destination_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "records.jsonl", records(10))
    refused = []

    def second(tally: indexer.Tally) -> None:
        for restart in (False, True):
            with pytest.raises(CognateError, match="another process is at work in") as error:
                indexer.build(source, tiny_bundle, tmp_path / "index", restart=restart)
            refused.append(error)

    assert indexer.build(source, tiny_bundle, tmp_path / "index", on_start=second).count == 10
    assert len(refused) == 2


def test_a_bad_line_keeps_what_was_encoded_before_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.batch_job.CHUNK", CHUNK)
    source = write(tmp_path / "records.jsonl", [*records(100), {"text": 7}, *records(30)])
    tally = indexer.Tally()
    with pytest.raises(RecordError, match="records.jsonl:101"):
        indexer.build(source, tiny_bundle, tmp_path / "index", tally=tally, on_duplicate="last")
    assert tally.kept == CHUNK
    told = indexer.Tally()
    manifest = indexer.build(
        source,
        tiny_bundle,
        tmp_path / "index",
        rejects=indexer.batch_job.Rejects(lambda error: None),
        on_duplicate="last",
        tally=told,
    )
    # The last 30 have ids that earlier ones have, but for those that are numbered.
    assert (told.resumed, told.replaced, manifest.count) == (CHUNK, 15, 115)


def test_standard_input_is_begun_anew(
    interrupted: Callable[..., Path], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    lines = "".join(json.dumps(record) + "\n" for record in records(300)).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    source = interrupted()
    with pytest.raises(CognateError, match="another input"):
        indexer.build("-", tiny_bundle, tmp_path / "index")
    tally = indexer.Tally()
    assert indexer.build("-", tiny_bundle, tmp_path / "index", restart=True, tally=tally).count == 300
    assert source.exists()
    assert tally.resumed == 0


def test_a_text_that_repeats_is_encoded_once(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.batch_job.CHUNK", CHUNK)
    lines = texts(10)
    source = write(tmp_path / "records.jsonl", [{"text": lines[n % 10]} for n in range(300)])
    tally = indexer.Tally()
    indexer.build(source, tiny_bundle, tmp_path / "index", tally=tally)
    assert (tally.encoded, tally.repeated) == (10, 290)
    index = Index(tmp_path / "index")
    rows = list(range(300))
    assert [record.text for record in index.records(rows)] == [lines[n % 10] for n in rows]
    vectors = index.vectors(rows)
    assert all((vectors[row] == vectors[row % 10]).all() for row in rows)


def test_the_last_of_the_records_with_one_id_is_kept_where_asked(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write(
        tmp_path / "records.jsonl",
        [
            {"text": "old", "id": "a"},
            {"text": "other"},
            {"text": "new", "id": "a"},
            {"text": "last", "id": "1"},
        ],
    )
    with pytest.raises(CognateError, match="record 3 has the id 'a'.*--on-duplicate last"):
        indexer.build(source, tiny_bundle, tmp_path / "index")
    tally = indexer.Tally()
    indexer.build(source, tiny_bundle, tmp_path / "index", on_duplicate="last", tally=tally)
    index = Index(tmp_path / "index")
    assert [(record.id, record.text) for record in index.records([0, 1])] == [("a", "new"), ("1", "last")]
    assert (index.count, tally.replaced) == (2, 2)
