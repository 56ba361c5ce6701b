"""Versions of indexes: held open by whoever searches, closed when the last has ended."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import serving.indexes
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError, FingerprintError
from cognate.index import Index
from cognate.searchable import Searchable
from serving.indexes import IndexRegistry
from serving.refusal import Refusal
from tests.serving.servers import eventually, version_records, write_index


@asynccontextmanager
async def registry_of(encoder: Encoder, **indexes: Path) -> AsyncIterator[IndexRegistry]:
    registry = IndexRegistry(fingerprint=encoder.fingerprint, device="cpu")
    try:
        for name, folder in indexes.items():
            await registry.load(name, folder)
        yield registry
    finally:
        registry.close()


def id_of(index: Index) -> str | None:
    return index.records([0])[0].id


def is_closed(index: Index) -> bool:
    try:
        index.records([0])
    except CognateError as why:
        assert "is closed" in str(why)  # noqa: PT017
        return True
    return False


async def until(happens: Callable[[], object]) -> None:
    await asyncio.to_thread(eventually, happens)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_the_old_version_closes_when_its_last_search_has_ended(versions: Path, encoder: Encoder) -> None:
    async def test() -> None:
        async with registry_of(encoder, faq=versions / "v1") as registry:
            _, first = registry.find("faq")
            with first:
                with first:
                    await registry.load("faq", versions / "v2")
                    assert id_of(registry.find("faq")[1].index) == "v2/0"
                    assert id_of(first.index) == "v1/0"
                assert id_of(first.index) == "v1/0"
            await until(lambda: is_closed(first.index))

    run(test())


def test_a_search_whose_caller_has_gone_keeps_its_version_open(versions: Path, encoder: Encoder) -> None:
    begun, go_on = threading.Event(), threading.Event()
    seen = []

    def search(index: Index) -> None:
        begun.set()
        assert go_on.wait(60)
        seen.append(id_of(index))

    async def test() -> None:
        async with registry_of(encoder, faq=versions / "v1") as registry:
            _, version = registry.find("faq")
            with ThreadPoolExecutor(1) as threads:
                searching = asyncio.create_task(version.run(threads, search))
                await asyncio.to_thread(begun.wait, 60)
                searching.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await searching
                await registry.load("faq", versions / "v2")
                go_on.set()
                await until(lambda: is_closed(version.index))
            assert seen == ["v1/0"]

    run(test())


def test_a_load_that_is_cancelled_changes_nothing_and_leaves_nothing_open(
    versions: Path, encoder: Encoder
) -> None:
    async def test() -> None:
        async with registry_of(encoder, faq=versions / "v1") as registry:
            await until(lambda: True)  # The thread that it starts stays.
            before = psutil.Process().num_fds()
            loading = asyncio.create_task(registry.load("faq", versions / "v2"))
            while registry.loading is None:
                await asyncio.sleep(0)
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            assert registry.loading is None
            assert id_of(registry.find("faq")[1].index) == "v1/0"
            await until(lambda: psutil.Process().num_fds() == before)

    run(test())


def test_twenty_switches_leave_no_file_open_and_nothing_mapped(versions: Path, encoder: Encoder) -> None:
    def held() -> tuple[int, int]:
        process = psutil.Process()
        maps = sum("index.faiss" in mapped.path for mapped in process.memory_maps(grouped=False))
        return process.num_fds(), maps

    async def test() -> None:
        # Other tests of this process may have left some open.
        of_others = held()[1]
        async with registry_of(encoder, faq=versions / "v1") as registry:
            await registry.load("faq", versions / "v2")
            await until(lambda: held()[1] == of_others + 1)
            before = held()
            for number in range(20):
                await registry.load("faq", versions / f"v{1 + number % 2}")
            await until(lambda: held() == before)

    run(test())


def test_a_rollback_goes_back_and_again_forth(versions: Path, encoder: Encoder) -> None:
    async def test() -> None:
        async with registry_of(encoder, faq=versions / "v1") as registry:
            with pytest.raises(Refusal, match="no previous version"):
                await registry.rollback("faq")
            await registry.load("faq", versions / "v2")
            await registry.rollback("faq")
            assert id_of(registry.find("faq")[1].index) == "v1/0"
            await registry.rollback("faq")
            assert id_of(registry.find("faq")[1].index) == "v2/0"

    run(test())


def test_a_rollback_never_opens_something_else_in_the_old_place(versions: Path, encoder: Encoder) -> None:
    async def test() -> None:
        async with registry_of(encoder, faq=versions / "v1") as registry:
            await registry.load("faq", versions / "v2")
            shutil.rmtree(versions / "v1")
            with pytest.raises(ArtifactError, match="does not exist"):
                await registry.rollback("faq")
            (versions / "v3").rename(versions / "v1")
            with pytest.raises(ArtifactError, match="no longer"):
                await registry.rollback("faq")
            assert id_of(registry.find("faq")[1].index) == "v2/0"

    run(test())


def test_the_present_version_is_not_loaded_again(versions: Path, encoder: Encoder) -> None:
    async def test() -> None:
        async with registry_of(encoder, faq=versions / "v1") as registry:
            version = registry.find("faq")[1]
            shutil.copytree(versions / "v1", versions / "copy")
            await registry.load("faq", versions / "copy")
            assert registry.find("faq")[1] is version
            assert registry.served("faq").previous is None

    run(test())


def test_reload_takes_what_is_in_the_place_of_an_index_now(
    versions: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        link = versions / "current"
        link.symlink_to("v1")
        async with registry_of(encoder, faq=link, other=versions / "v2") as registry:
            link.unlink()
            link.symlink_to("v3")
            shutil.rmtree(versions / "v2")
            await registry.reload()
            assert id_of(registry.find("faq")[1].index) == "v3/0"
            assert id_of(registry.find("other")[1].index) == "v2/0"
            assert [record.message for record in caplog.records if "stays at version" in record.message]
            await registry.rollback("faq")
            assert id_of(registry.find("faq")[1].index) == "v1/0"

    run(test())


def test_a_reload_leaves_as_it_is_what_is_unloaded_or_rolled_back_meanwhile(
    versions: Path, encoder: Encoder
) -> None:
    async def test() -> None:
        async with registry_of(
            encoder, first=versions / "v1", gone=versions / "v2", back=versions / "v1"
        ) as registry:
            await registry.load("back", versions / "v2")
            reloading = asyncio.create_task(registry.reload())
            while registry.loading != "first":
                await asyncio.sleep(0)
            await asyncio.gather(registry.unload("gone"), registry.rollback("back"))
            await reloading
            assert registry.names() == ["back", "first"]
            assert id_of(registry.find("back")[1].index) == "v1/0"

    run(test())


def test_an_index_of_another_model_is_refused_and_the_present_one_stays(
    versions: Path, encoder: Encoder, tiny_bundle: Path
) -> None:
    write_index(versions / "v4", Encoder(tiny_bundle), version_records("v4"))

    async def test() -> None:
        async with registry_of(encoder, faq=versions / "v1") as registry:
            with pytest.raises(FingerprintError):
                await registry.load("faq", versions / "v4")
            assert id_of(registry.find("faq")[1].index) == "v1/0"

    run(test())


def test_a_compacted_version_that_fails_before_it_is_anyones_is_closed(
    versions: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed: list[Any] = []

    def fail(index: Searchable) -> None:
        failed.append(index)
        raise MemoryError

    async def test() -> None:
        registry = IndexRegistry(fingerprint=encoder.fingerprint, device="cpu", updates=True, compact_after=1)
        try:
            await registry.load("faq", versions / "v1")
            monkeypatch.setattr(serving.indexes, "_warm", fail)
            await registry.update("faq", lambda updates: updates.apply(deletes=["v1/0"]))
            await until(lambda: "index faq is not compacted: MemoryError" in caplog.text)
            assert is_closed(failed[0])
        finally:
            registry.close()

    run(test())
