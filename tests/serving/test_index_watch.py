"""A folder in which versions of indexes are published, by name and version."""

import asyncio
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.artifact import publishing
from cognate.encoder import Encoder
from cognate.errors import CognateError
from cognate.v1 import index_pb2, search_pb2
from serving.index_watch import IndexWatch, version_order
from serving.indexes import IndexRegistry
from tests.serving.servers import Running, eventually, version_records, write_index
from tests.serving.test_indexes import id_of, run

PUBLISH_AND_STOP_SHORT = """
import sys
from pathlib import Path
from cognate.artifact import publishing
from cognate.encoder import Encoder
from cognate.index import IndexWriter
from cognate.records import Record
encoder = Encoder(sys.argv[1])
with publishing(Path(sys.argv[2]), "index") as partial, IndexWriter(partial, encoder.dimension) as writer:
    writer.add([Record("a", None, "killed")], encoder.encode(["a"]))
    writer.finish(encoder.bundle)
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(versions: Path, tmp_path: Path) -> Path:
    """A watched folder with faq/v1."""
    (tmp_path / "watched/faq").mkdir(parents=True)
    publish(versions / "v1", tmp_path / "watched/faq/v1")
    return tmp_path / "watched"


def publish(source: Path, destination: Path, *, force: bool = False) -> None:
    """Copy an index into place as a job publishes one."""
    with publishing(destination, "index", force=force) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)


def corrupt(index: Path) -> None:
    with (index / "index.faiss").open("r+b") as file:
        file.seek(50)
        file.write(b"\xff\xff\xff\xff")


@asynccontextmanager
async def watched(folder: Path, encoder: Encoder) -> AsyncIterator[tuple[IndexWatch, IndexRegistry]]:
    """A watch that has looked once."""
    registry = IndexRegistry(fingerprint=encoder.fingerprint, device="cpu")
    watch = IndexWatch(folder, registry)
    try:
        await watch.poll()
        yield watch, registry
    finally:
        registry.close()


def now(registry: IndexRegistry, name: str = "faq") -> str | None:
    return id_of(registry.find(name)[1].index)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Ours: a thread that another test has left may say something meanwhile, as one that sends spans does."""
    ours = ("serving.", "cognate.")
    return [
        record.message
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith(ours)
    ]


def test_the_newest_version_is_served_and_a_new_name_is_too(
    folder: Path, versions: Path, encoder: Encoder
) -> None:
    async def test() -> None:
        publish(versions / "v2", folder / "faq/v10")
        publish(versions / "v3", folder / "faq/v9")
        async with watched(folder, encoder) as (watch, registry):
            assert now(registry) == "v2/0"
            publish(versions / "v3", folder / "faq/v11")
            publish(versions / "v1", folder / "other/2026-11-24")
            await watch.poll()
            assert now(registry) == "v3/0"
            assert now(registry, "other") == "v1/0"
            # Older than what was served: not taken.
            publish(versions / "v1", folder / "faq/v8")
            await watch.poll()
            assert now(registry) == "v3/0"

    run(test())


def test_a_bad_version_is_refused_with_one_line_and_the_last_good_one_serves(
    folder: Path, versions: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with watched(folder, encoder) as (watch, registry):
            corrupt(versions / "v3")
            publish(versions / "v3", folder / "faq/v3")
            await watch.poll()
            await watch.poll()
            assert now(registry) == "v1/0"
            (line,) = warnings(caplog)
            assert "index faq" in line
            assert "faq/v3" in line
            assert "was altered" in line
            # A good one that is older than the bad one is newer than what serves.
            publish(versions / "v2", folder / "faq/v2")
            await watch.poll()
            assert now(registry) == "v2/0"
        # A server that starts beside a bad version serves the last good one.
        async with watched(folder, encoder) as (_, registry):
            assert now(registry) == "v2/0"

    run(test())


def test_a_bad_version_that_is_written_anew_is_taken(folder: Path, versions: Path, encoder: Encoder) -> None:
    async def test() -> None:
        shutil.copytree(versions / "v2", folder / "faq/v2")
        corrupt(folder / "faq/v2")
        async with watched(folder, encoder) as (watch, registry):
            assert now(registry) == "v1/0"
            publish(versions / "v2", folder / "faq/v2", force=True)
            await watch.poll()
            assert now(registry) == "v2/0"
            publish(versions / "v3", folder / "faq/v2", force=True)
            await watch.poll()
            assert now(registry) == "v3/0"

    run(test())


def test_what_was_rolled_back_or_unloaded_stays_so_until_a_newer_version(
    folder: Path, versions: Path, encoder: Encoder
) -> None:
    async def test() -> None:
        async with watched(folder, encoder) as (watch, registry):
            publish(versions / "v2", folder / "faq/v2")
            await watch.poll()
            await registry.rollback("faq")
            await watch.poll()
            assert now(registry) == "v1/0"
            await registry.unload("faq")
            await watch.poll()
            assert registry.names() == []
            publish(versions / "v3", folder / "faq/v3")
            await watch.poll()
            assert now(registry) == "v3/0"

    run(test())


def test_no_more_is_kept_of_a_version_that_a_newer_one_took_the_place_of(
    folder: Path, versions: Path, encoder: Encoder
) -> None:
    async def test() -> None:
        async with watched(folder, encoder) as (watch, _):
            corrupt(versions / "v3")
            for number in range(2, 8):
                publish(versions / ("v2", "v1", "v3")[number % 3], folder / f"faq/v{number}")
                await watch.poll()
            assert watch._tried.keys() == {folder / "faq/v7"}

    run(test())


def test_a_job_that_is_killed_before_it_has_published_is_passed_over(
    folder: Path, bundle: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    command = [sys.executable, "-c", PUBLISH_AND_STOP_SHORT, str(bundle), str(folder / "faq/v2")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"written\n"
        job.send_signal(signal.SIGKILL)
    (left,) = [path for path in (folder / "faq").iterdir() if path.name != "v1"]
    assert (left / "manifest.json").is_file()
    # What a copy that is not atomic leaves has no manifest yet.
    (folder / "faq/v3").mkdir()
    (folder / "faq/v3/index.faiss").write_bytes(b"IxFI")

    async def test() -> None:
        async with watched(folder, encoder) as (watch, registry):
            await watch.poll()
            assert now(registry) == "v1/0"
        assert warnings(caplog) == []

    run(test())


def test_a_version_that_goes_from_the_disk_keeps_answering(folder: Path, encoder: Encoder) -> None:
    async def test() -> None:
        async with watched(folder, encoder) as (watch, registry):
            shutil.rmtree(folder / "faq/v1")
            await watch.poll()
            index = registry.find("faq")[1].index
            texts = [record.text for record in version_records("v1")]
            answers = await asyncio.gather(
                *(asyncio.to_thread(index.search, encoder.encode([text]), 1) for text in texts)
            )
            assert [hits[0][0].id for hits in answers] == [f"v1/{row}" for row in range(len(texts))]

    run(test())


def test_a_folder_that_goes_is_one_line_and_what_is_loaded_serves(
    folder: Path, versions: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with watched(folder, encoder) as (watch, registry):
            shutil.rmtree(folder)
            await watch.poll()
            await watch.poll()
            assert now(registry) == "v1/0"
            (line,) = warnings(caplog)
            assert line.startswith(f"{folder} cannot be read: No such file")
            publish(versions / "v2", folder / "faq/v2")
            await watch.poll()
            assert now(registry) == "v2/0"

    run(test())


def test_a_running_server_takes_what_is_published(
    serve: Callable[..., Running], folder: Path, versions: Path
) -> None:
    stubs = serve(indexes={}, watch=folder, watch_seconds=0.05).stubs
    request = search_pb2.SearchRequest(queries=[search_pb2.Query(text="the printer")], top_k=1)

    def served() -> str:
        return str(stubs.search(request, timeout=60).results[0].hits[0].id).partition("/")[0]

    assert served() == "v1"
    publish(versions / "v2", folder / "faq/v2")
    eventually(lambda: served() == "v2")
    (described,) = stubs.list_indexes(index_pb2.ListIndexesRequest(), timeout=60).indexes
    assert described.previous_version


def test_a_server_without_the_folder_to_watch_does_not_start(
    serve: Callable[..., Running], tmp_path: Path
) -> None:
    with pytest.raises(CognateError, match="no folder .* to watch"):
        serve(watch=tmp_path / "nothing")


def test_a_new_name_appears_when_it_is_built_into_the_folder(folder: Path, encoder: Encoder) -> None:
    async def test() -> None:
        async with watched(folder, encoder) as (watch, registry):
            write_index(folder / "tickets/1", encoder, version_records("tickets"))
            await watch.poll()
            assert registry.names() == ["faq", "tickets"]

    run(test())


VERSIONS = ["1", "2", "10", "2026-01-09", "2026-1-10", "v1", "v1.9", "v1.10", "v2", "v10"]


@given(st.permutations(VERSIONS))
def test_numbers_in_names_count_as_numbers(names: list[str]) -> None:
    assert sorted(names, key=version_order) == VERSIONS


@given(st.lists(st.text(max_size=5), max_size=5))
def test_any_names_have_an_order(names: list[str]) -> None:
    ordered = sorted(names, key=version_order)
    backwards = list(reversed(ordered))
    assert sorted(backwards, key=version_order) == ordered
