"""Changes of the indexes, of this process alone or of all workers."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self

from cognate.errors import ArtifactError, CognateError, FingerprintError, UnavailableError
from cognate.searchable import Location, index_location
from serving.indexes import IndexRegistry, Prepared, Previous
from serving.refusal import no_previous_version


class IndexChanges(Protocol):
    """What changes the indexes that are served; ``IndexRegistry`` has what each raises."""

    async def load(self, name: str, location: Location) -> None:
        """Let the version at a location take the place of the present one."""

    async def rollback(self, name: str) -> None:
        """Let the version that was current before take the place of the present one."""

    async def unload(self, name: str) -> None:
        """Serve an index no longer."""


class Change(NamedTuple):
    """What is to become of an index.

    Attributes:
        name: The index's.
        location: Of the version that is to serve; None: none is.
        expected: The version that must lie there; None: any.
    """

    name: str
    location: Location | None
    expected: str | None = None

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Self:
        """Read what ``said`` wrote."""
        location = said["location"]
        return cls(said["name"], None if location is None else index_location(location), said["expected"])

    def said(self) -> dict[str, str | None]:
        """The change as JSON has it."""
        location = None if self.location is None else str(self.location)
        return {"name": self.name, "location": location, "expected": self.expected}


class ServedByAll(NamedTuple):
    """What all workers serve under a name, which one that is started again takes from the others.

    Attributes:
        source: Where it is, as it was given.
        previous: What a rollback goes back to.
    """

    source: Location
    previous: Previous | None

    @classmethod
    def of(cls, prepared: Prepared) -> Self:
        """What will be served once all have switched."""
        return cls(prepared.source, prepared.previous)

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Self:
        """Read what ``said`` wrote."""
        previous = said["previous"]
        return cls(
            index_location(said["source"]),
            None if previous is None else Previous(index_location(previous[0]), previous[1]),
        )

    def said(self) -> dict[str, Any]:
        """It as JSON has it."""
        previous = None if self.previous is None else [str(self.previous.location), self.previous.version]
        return {"source": str(self.source), "previous": previous}


class ChangesOfAll:
    """Changes of the indexes of all workers, asked of one of them."""

    def __init__(self, indexes: IndexRegistry, ask: Callable[[Change], Awaitable[None]]) -> None:
        """Make them.

        Args:
            indexes: Those of this worker, which are as those of the others.
            ask: Asks for a change, and returns once all have made it; raises CognateError where none has.
        """
        self._indexes = indexes
        self._ask = ask

    async def load(self, name: str, location: Location) -> None:
        """As ``IndexRegistry.load``, in all workers."""
        await self._ask(Change(name, location))

    async def rollback(self, name: str) -> None:
        """As ``IndexRegistry.rollback``, in all workers."""
        previous = self._indexes.served(name).previous
        if previous is None:
            raise no_previous_version(name)
        await self._ask(Change(name, previous.location, previous.version))

    async def unload(self, name: str) -> None:
        """As ``IndexRegistry.unload``, in all workers."""
        self._indexes.served(name)
        await self._ask(Change(name, None))


class OtherWorkers(NamedTuple):
    """What a worker knows of those that share its port.

    Attributes:
        ask: As ``ChangesOfAll`` has it.
        served: What they serve, by name; None where all start.
    """

    ask: Callable[[Change], Awaitable[None]]
    served: Mapping[str, ServedByAll] | None


_ERRORS = {each.__name__: each for each in (ArtifactError, FingerprintError, UnavailableError)}


def said_of(error: CognateError) -> list[str]:
    """An error as JSON has it."""
    return [type(error).__name__, str(error)]


def error_of(said: list[str]) -> CognateError:
    """Read what ``said_of`` wrote."""
    kind, sentence = said
    return _ERRORS.get(kind, CognateError)(sentence)


def line(message: Mapping[str, Any]) -> bytes:
    """A message between parent and worker."""
    return json.dumps(message).encode() + b"\n"
