"""A folder in which batch jobs publish versions of indexes, and which is looked at every few seconds.

Its layout is FOLDER/NAME/VERSION, each VERSION the folder of an index, which appears whole, as ``cognate
index build --out FOLDER/NAME/VERSION`` sees to. The last version by name is the newest; in names, numbers
count as numbers, so that v10 comes after v9. What begins with a dot is passed over: it is being written.
"""

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from cognate.artifact import MANIFEST
from cognate.updates import SUFFIX
from serving.settings import is_index_name

_log = logging.getLogger(__name__)


class Published(NamedTuple):
    """A version that was published.

    Attributes:
        folder: Where it is.
        files: Path, inode, size and time of each of its files; other ones tell that it was written anew.
    """

    folder: Path
    files: tuple[tuple[str, int, int, int], ...]


class Loads(Protocol):
    """Whoever loads what is published: a registry, or all of several workers."""

    async def load(self, name: str, location: Path, /) -> None:
        """As ``IndexRegistry.load``."""


class IndexWatch:
    """Loads what is published, where it is newer than whatever the watch has loaded before.

    A version that is refused is so with one line in the log, and not tried again until its files change. One
    that was rolled back from or unloaded is not loaded again either, unless it is written anew.
    """

    def __init__(self, folder: Path, registry: Loads) -> None:
        """Prepare to watch.

        Args:
            folder: The one that versions are published in.
            registry: Loads them.
        """
        self._folder = folder
        self._registry = registry
        self._newest: dict[str, list[tuple[int, int, str]]] = {}
        self._tried: dict[Path, Published] = {}
        self._complaint = ""

    async def run(self, seconds: float) -> None:
        """Look into the folder for ever.

        Args:
            seconds: Between two looks.
        """
        while True:
            await asyncio.sleep(seconds)
            await self.poll()

    async def poll(self) -> None:
        """Look into the folder once, and load what is new."""
        try:
            found = await asyncio.to_thread(published, self._folder)
        except OSError as error:
            where = error.filename or self._folder
            self._complain(f"{where} cannot be read: {error.strerror}; what is loaded keeps serving")
            return
        self._complain("")
        for name, versions in found.items():
            await self._load_newest(name, versions)

    async def _load_newest(self, name: str, versions: list[Published]) -> None:
        for version in reversed(versions):
            order = version_order(version.folder.name)
            if name in self._newest and order < self._newest[name]:
                return
            if self._tried.get(version.folder) == version:
                continue
            self._tried[version.folder] = version
            try:
                await self._registry.load(name, version.folder)
            # Whatever is wrong with one, the next may be good.
            except Exception as why:
                _log.warning(
                    "index %s: %s is refused: %s", name, version.folder, str(why) or type(why).__name__
                )
            else:
                self._newest[name] = order
                # Older ones are not looked at again, here or not.
                self._tried = {
                    folder: tried
                    for folder, tried in self._tried.items()
                    if folder.parent != version.folder.parent or version_order(folder.name) >= order
                }
                return

    def _complain(self, complaint: str) -> None:
        if complaint and complaint != self._complaint:
            _log.warning("%s", complaint)
        self._complaint = complaint


def published(folder: Path) -> dict[str, list[Published]]:
    """Find the versions of each index, oldest first.

    Args:
        folder: The one that versions are published in.

    Raises:
        OSError: It cannot be read.
    """
    return {
        named.name: sorted(_versions(named), key=lambda version: version_order(version.folder.name))
        for named in sorted(folder.iterdir())
        if is_index_name(named.name) and named.is_dir() and named.suffix != SUFFIX
    }


def version_order(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names of versions, numbers in them as numbers."""
    return [
        (1, int(part), part) if part.isdecimal() else (0, 0, part) for part in re.split(r"([0-9]+)", name)
    ]


def _versions(named: Path) -> Iterator[Published]:
    for folder in named.iterdir():
        if folder.name.startswith("."):
            continue
        files = []
        try:
            if not (folder / MANIFEST).is_file():
                continue
            for file in sorted(folder.rglob("*")):
                stat = file.stat()
                files.append((str(file), stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except FileNotFoundError:
            # It is being removed or replaced.
            continue
        except OSError:
            # Loading it will say what is wrong.
            files.clear()
        yield Published(folder, tuple(files))
