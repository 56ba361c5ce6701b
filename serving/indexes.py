"""The indexes that are searched: versions opened, switched and released while searches go on.

All of it belongs to the event loop's thread, so that nothing is locked: a search takes the version that is
current, and between that and its hold on it, no other code runs.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

import numpy as np

from cognate.devices import IndexDevice, IndexGpus
from cognate.errors import ArtifactError, CognateError
from cognate.index import Index
from cognate.milvus.location import MilvusLocation, MilvusOptions
from cognate.opening import open_milvus, stands_for
from cognate.searchable import Location, Searchable
from cognate.update_log import State
from cognate.updates import Applied, Base, IndexUpdates, UpdatedIndex, open_index, state_of
from serving.refusal import no_previous_version, no_such_index, no_updates
from serving.settings import DEFAULT_INDEX

if TYPE_CHECKING:
    from cognate.milvus.updates import MilvusUpdates

WARMING_HITS = 10
"""Hits of the search that a version answers before it is anyone's: pages are touched, and records read."""

_log = logging.getLogger(__name__)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Version:
    """An open version of an index, which closes once nobody holds it: neither the registry nor a search.

    Attributes:
        index: The index.
    """

    def __init__(self, index: Searchable) -> None:
        self.index = index
        # The registry's hold, which it gives up when another version takes its place.
        self._holds = 1

    def __enter__(self) -> Self:
        """Hold it open."""
        self._holds += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up the hold."""
        self.release()

    def release(self) -> None:
        """Give up a hold; the last one closes the index, in a thread, for unmapping takes its time."""
        self._holds -= 1
        if not self._holds:
            asyncio.get_running_loop().run_in_executor(None, self.index.close)

    async def run(
        self,
        threads: ThreadPoolExecutor,
        function: Callable[Concatenate[Searchable, _Arguments], _Result],
        *arguments: _Arguments.args,
        **options: _Arguments.kwargs,
    ) -> _Result:
        """Call ``function(index, …)`` in a thread.

        The index stays open until the function has returned, also where the caller waits no longer.
        """
        loop = asyncio.get_running_loop()
        work = threads.submit(function, self.index, *arguments, **options)
        self._holds += 1
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self.release))
        return await asyncio.wrap_future(work)


class Previous(NamedTuple):
    """What was current before. It is closed, and opened again for a rollback.

    Attributes:
        location: Where it is.
        version: Its ``Index.version``.
    """

    location: Location
    version: str

    @classmethod
    def of(cls, index: Searchable) -> Self:
        """What a version is after another has taken its place."""
        return cls(index.location, index.version)


@dataclass(frozen=True)
class Served:
    """What is served under a name.

    Attributes:
        version: The current version.
        source: Where it is, as it was given, maybe a link or an alias, which a reload looks at again.
        previous: What a rollback goes back to.
        updates: What changes it; None where it takes no updates.
    """

    version: Version
    source: Location
    previous: Previous | None
    updates: "IndexUpdates | MilvusUpdates | None" = None


class IndexRegistry:
    """Indexes by name, all of one model. Changes are made one after another; searches never wait for one.

    ``load`` and ``rollback`` are ``prepare`` and ``switch``, which are apart where several processes switch
    together; who calls these two makes one change after another.

    Attributes:
        loading: The name that a version is being opened for; None where none is.
    """

    def __init__(
        self,
        *,
        fingerprint: str,
        device: IndexDevice = "auto",
        gpus: IndexGpus = "one",
        updates: bool = False,
        compact_after: int = 10_000,
        milvus: MilvusOptions = MilvusOptions(),  # noqa: B008, for it is frozen
    ) -> None:
        """Make a registry of nothing.

        Args:
            fingerprint: Of the bundle that queries are encoded with; another's indexes are refused.
            device: Where the indexes are searched.
            gpus: As ``Index`` has it.
            updates: Whether the indexes take updates. No other process can update one meanwhile.
            compact_after: Changed records of an index, after which it is compacted.
            milvus: How to talk to Milvus, for the indexes that are there.
        """
        self.loading: str | None = None
        self._fingerprint = fingerprint
        self._device = device
        self._gpus = gpus
        self._milvus = milvus
        # Names whose alias could not be looked up, and was told of.
        self._unfollowed: set[str] = set()
        self._served: dict[str, Served] = {}
        self._changing = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, "index-load")
        self._updates = updates
        self._compact_after = compact_after
        # By name: updates are made one after another, and a compaction takes a turn among them.
        self._updating: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._writers = ThreadPoolExecutor(4, "index-update")
        self._compactor = ThreadPoolExecutor(1, "index-compact")
        self._compactions: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Future[None]] = set()
        # Where a compaction failed, how much must have changed before the next.
        self._compact_again: dict[str, int] = {}

    def close(self) -> None:
        """Close every index. No search may be under way."""
        self._loader.shutdown(cancel_futures=True)
        for compaction in self._compactions.values():
            compaction.cancel()
        self._writers.shutdown()
        for served in self._served.values():
            if served.updates:
                # A compaction that is under way gives up.
                served.updates.close()
        self._compactor.shutdown(cancel_futures=True)
        for served in self._served.values():
            served.version.index.close()
        self._served.clear()

    def names(self) -> list[str]:
        """The names that are served, sorted."""
        return sorted(self._served)

    def indexes(self) -> dict[str, Searchable]:
        """The current versions by name, to look at; for any thread. One may be closed by then."""
        return {name: served.version.index for name, served in list(self._served.items())}

    def find(self, name: str) -> tuple[str, Version]:
        """The version that a search takes. Hold it, by ``with``, before anything is awaited.

        Args:
            name: Empty: the only one, or the one named "default".

        Returns:
            Its name, and it.

        Raises:
            Refusal: There is none of that name.
        """
        if not name:
            name = next(iter(self._served)) if len(self._served) == 1 else DEFAULT_INDEX
            if name not in self._served:
                raise no_such_index("", self.names())
        return name, self.served(name).version

    def served(self, name: str) -> Served:
        """What is served under a name.

        Raises:
            Refusal: There is none of that name.
        """
        if name not in self._served:
            raise no_such_index(name, self.names())
        return self._served[name]

    async def load(self, name: str, location: Location) -> None:
        """Open a version, check it, warm it, and let it take the place of the present one.

        Args:
            name: New, or one that is served.
            location: The version's. Nothing happens where it holds the present version.

        Raises:
            CognateError: It is missing, damaged, too new or of another model. The present one stays.
        """
        async with self._changing:
            self.switch(await self.prepare(name, location))

    async def rollback(self, name: str) -> None:
        """Let the version that was current before take the place of the present one.

        Raises:
            Refusal: There is no such name, or nothing was before.
            CognateError: What was before is gone or damaged. The present one stays.
        """
        async with self._changing:
            previous = self.served(name).previous
            if previous is None:
                raise no_previous_version(name)
            self.switch(await self.prepare(name, previous.location, previous.version))

    async def unload(self, name: str) -> None:
        """Serve an index no longer. Searches under way are still answered.

        Raises:
            Refusal: There is no such name.
        """
        async with self._changing:
            served = self.served(name)
            del self._served[name]
            self._retire(served)
            _log.info("index %s: version %s is unloaded", name, served.version.index.version)

    async def update(self, name: str, change: "Callable[[IndexUpdates | MilvusUpdates], Applied]") -> Applied:
        """Update an index, in a thread; searches that begin once this has returned find it so.

        Args:
            name: The index's.
            change: Calls ``IndexUpdates.apply``.

        Raises:
            Refusal: There is no such name, or it takes no updates.
            CognateError: As ``IndexUpdates.apply``.
        """
        async with self._updating[name]:
            while True:
                served = self.served(name)
                updates = served.updates
                if updates is None:
                    raise no_updates(f"the index {name} takes no updates; start the server with --updates")
                try:
                    # Held open as for a search: another version may take its place meanwhile.
                    applied = await served.version.run(self._writers, _changed, updates, change)
                except CognateError:
                    if self._is_updated_by(updates, name):
                        raise
                    # Another version has taken its place, and its updates were closed before this one.
                else:
                    break
        self._compact_if_due(name)
        return applied

    def _is_updated_by(self, updates: "IndexUpdates | MilvusUpdates", name: str) -> bool:
        served = self._served.get(name)
        return served is not None and served.updates is updates

    def _compact_if_due(self, name: str) -> None:
        served = self._served.get(name)
        if served is None or not isinstance(served.updates, IndexUpdates) or name in self._compactions:
            return
        if served.updates.changed >= self._compact_again.get(name, self._compact_after):
            self._compactions[name] = asyncio.create_task(self._compact(name, served, served.updates))

    async def _compact(self, name: str, served: Served, updates: IndexUpdates) -> None:
        """Write an index anew with its updates in it, and let it take the place of both."""
        try:
            base = await served.version.run(self._compactor, _write_base_warm, updates)
            if base is None:
                return
            async with self._updating[name]:
                index = await asyncio.wrap_future(self._writers.submit(updates.switch_to, base))
                version = Version(index)
                if self._served.get(name) is served:
                    self._served[name] = replace(served, version=version)
                    served.version.release()
                else:
                    version.release()
        except Exception as why:
            if self._served.get(name) is not served:
                return  # Its updates were closed, as another version took its place.
            # Where it failed for want of room, it would again at once.
            self._compact_again[name] = 2 * updates.index.changed
            _log.warning("index %s is not compacted: %s", name, str(why) or type(why).__name__)
        else:
            self._compact_again.pop(name, None)
            _log.info("index %s: version %s has %d updates in it", name, index.version, base.revision)
        finally:
            del self._compactions[name]

    def _retire(self, served: Served) -> None:
        """Give up what is served no longer, whatever is searched in it still."""
        served.version.release()
        if served.updates:
            # In a thread, for it waits for an update that is being written, and for a compaction to give up.
            closing = asyncio.get_running_loop().run_in_executor(None, served.updates.close)
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def reload(self) -> None:
        """Load again each index whose folder now holds another version; what is refused is logged."""
        for name in self.names():
            async with self._changing:
                # As it is by now: it may have been unloaded, or rolled back from, meanwhile.
                served = self._served.get(name)
                if served is None:
                    continue
                try:
                    self.switch(await self.prepare(name, served.source))
                except CognateError as why:
                    _log.warning("index %s stays at version %s: %s", name, served.version.index.version, why)

    async def follow_aliases(self, seconds: float) -> None:
        """Load, for ever, what the aliases of indexes in Milvus have been switched to.

        Args:
            seconds: Between two looks.
        """
        while True:
            await asyncio.sleep(seconds)
            for name, served in list(self._served.items()):
                if not isinstance(served.source, MilvusLocation):
                    continue
                try:
                    await self._follow(name, served, served.source)
                except CognateError as why:
                    if name not in self._unfollowed:
                        _log.warning(
                            "index %s stays at version %s: %s", name, served.version.index.version, why
                        )
                    self._unfollowed.add(name)
                else:
                    self._unfollowed.discard(name)

    async def _follow(self, name: str, served: Served, alias: MilvusLocation) -> None:
        with served.version:
            index = served.version.index
            if await asyncio.wrap_future(self._loader.submit(stands_for, alias, index)):
                return
        async with self._changing:
            # Not where it was unloaded, or rolled back from, meanwhile.
            if self._served.get(name) is served:
                self.switch(await self.prepare(name, alias))

    async def prepare(self, name: str, location: Location, expected: str | None = None) -> "Prepared":
        """Open a version, check it and warm it, beside the present one; then ``switch`` to it or ``drop`` it.

        Args:
            name: New, or one that is served.
            location: The version's.
            expected: The version that must lie there; None: any.

        Raises:
            CognateError: As ``load``.
        """
        if self._closing:
            # What was served before may be what is to be opened, and one at a time updates it.
            await asyncio.wait(self._closing)
        opened = await self._open(name, location, expected)
        before = self._served.get(name)
        if opened is not None:
            previous = None if before is None else Previous.of(before.version.index)
            return Prepared(name, location, opened.index.version, previous, opened)
        assert before  # noqa: S101
        return Prepared(name, before.source, before.version.index.version, before.previous, None)

    def switch(self, prepared: "Prepared") -> None:
        """Let what was prepared take the place of the present version."""
        if prepared.opened is None:
            return
        name, index, updates = prepared.name, prepared.opened.index, prepared.opened.updates
        before = self._served.get(name)
        previous = None if before is None else Previous.of(before.version.index)
        self._served[name] = Served(Version(index), prepared.source, previous, updates)
        if before is not None:
            self._retire(before)
        self._compact_again.pop(name, None)
        self._compact_if_due(name)
        _log.info(
            "index %s: version %s of %s serves, %d records, on %s",
            name,
            index.version,
            prepared.source,
            index.count,
            index.device,
        )

    def drop(self, prepared: "Prepared") -> None:
        """Close what was prepared, in a thread; the present version stays."""
        if prepared.opened is not None:
            asyncio.get_running_loop().run_in_executor(None, prepared.opened.close)

    def remember(self, name: str, previous: Previous) -> None:
        """Let a rollback of what is served go back to a version that this registry did not have itself."""
        self._served[name] = replace(self._served[name], previous=previous)

    async def _open(self, name: str, location: Location, expected: str | None) -> "_Opened | None":
        """Open a version in the loader's thread; None where it is the current one."""
        work = self._loader.submit(
            _open_warm,
            location,
            self._fingerprint,
            self._device,
            self._gpus,
            self._milvus,
            self._served.get(name),
            expected,
            updates=self._updates,
        )
        self.loading = name
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            # Who asked for it has gone.
            work.add_done_callback(_close_opened)
            raise
        finally:
            self.loading = None


@dataclass(frozen=True)
class _Opened:
    """A version that was opened, and what changes it; None where it takes no updates."""

    index: Searchable
    updates: "IndexUpdates | MilvusUpdates | None"

    def close(self) -> None:
        if self.updates:
            self.updates.close()
        self.index.close()


@dataclass(frozen=True)
class Prepared:
    """A version that was opened beside the present one, to take its place.

    Attributes:
        name: Under which it is to be served.
        source: Where it is, as it was given.
        version: Its ``Index.version``.
        previous: What would be before it.
        opened: None where it is the present one.
    """

    name: str
    source: Location
    version: str
    previous: Previous | None
    opened: _Opened | None


def _open_warm(
    location: Location,
    fingerprint: str,
    device: IndexDevice,
    gpus: IndexGpus,
    milvus: MilvusOptions,
    current: Served | None,
    expected: str | None,
    *,
    updates: bool,
) -> _Opened | None:
    if isinstance(location, MilvusLocation):
        return _open_milvus_warm(location, fingerprint, milvus, current, expected, updates=updates)
    # A link may lead elsewhere by the time of a rollback.
    folder = location.resolve()
    state = state_of(folder)
    if current and _is_current(current, folder, state):
        return None
    if expected is not None and state.base_version != expected:
        raise ArtifactError(
            f"{folder} holds version {state.base_version}, no longer {expected}; load another folder"
        )
    if updates:
        writer = IndexUpdates(folder, fingerprint=fingerprint, device=device)
        opened = _Opened(writer.index, writer)
    else:
        opened = _Opened(open_index(folder, fingerprint=fingerprint, device=device, gpus=gpus), None)
    try:
        _warm(opened.index)
    except BaseException:
        opened.close()
        raise
    return opened


def _open_milvus_warm(
    location: MilvusLocation,
    fingerprint: str,
    milvus: MilvusOptions,
    current: Served | None,
    expected: str | None,
    *,
    updates: bool,
) -> _Opened | None:
    if current and stands_for(location, current.version.index):
        return None
    index, writer = open_milvus(location, fingerprint=fingerprint, milvus=milvus)
    try:
        if expected is not None and index.version != expected:
            raise ArtifactError(
                f"{location} holds version {index.version}, no longer {expected}; load another collection"
            )
        _warm(index)
    except BaseException:
        index.close()
        raise
    return _Opened(index, writer if updates else None)


def _is_current(current: Served, folder: Path, state: State) -> bool:
    index = current.version.index
    if not isinstance(index, Index):
        return False
    if not isinstance(index, UpdatedIndex):
        return state == State(index.version, "", index.version, 0)
    # Nobody else updates what is updated here, and an update under way may be in the log already.
    here = current.updates is not None and index.folder == folder
    return index.state == state or (here and index.state.root_version == state.root_version)


def _changed(
    _: Searchable,
    updates: "IndexUpdates | MilvusUpdates",
    change: "Callable[[IndexUpdates | MilvusUpdates], Applied]",
) -> Applied:
    return change(updates)


def _write_base_warm(_: Searchable, updates: IndexUpdates) -> Base | None:
    base = updates.write_base()
    if base is not None:
        try:
            _warm(base.index)
        except BaseException:
            base.index.close()
            raise
    return base


def _warm(index: Searchable) -> None:
    vectors = np.full((1, index.dimension), index.dimension**-0.5, np.float32)
    index.search(vectors, WARMING_HITS)


def _close_opened(work: Future[Any]) -> None:
    if not work.cancelled() and not work.exception() and work.result() is not None:
        work.result().close()
