"""Where an index in Milvus is, and how to talk to it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, get_args

from cognate.errors import CognateError

Consistency = Literal["strong", "bounded", "session", "eventually"]

TOKEN_VARIABLE = "COGNATE_MILVUS_TOKEN"  # noqa: S105, its name

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_HOST = re.compile(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]")
_FORMS = (
    "write milvus://HOST:PORT/COLLECTION, milvus+tls://HOST:PORT/COLLECTION (either with DATABASE/ before "
    "the collection), or milvus:FILE.db/COLLECTION for milvus-lite"
)


@dataclass(frozen=True, slots=True)
class MilvusLocation:
    """A collection in Milvus, or an alias of one. ``str`` gives what ``parse`` reads.

    Attributes:
        server: HOST:PORT; or the path of the file of milvus-lite, which ends in .db.
        collection: The name of the collection or alias.
        database: On the server; empty for the default one.
        tls: Whether the server is talked to with TLS.
    """

    server: str
    collection: str
    database: str = ""
    tls: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is a file of milvus-lite."""
        return self.server.endswith(".db")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a location.

        Raises:
            CognateError: It is none. What is wrong is not shown: it may have a password in it.
        """
        scheme, _, rest = text.partition(":")
        if scheme == "milvus" and (not rest.startswith("//") or rest.startswith("///")):
            file, _, collection = rest.removeprefix("//").rpartition("/")
            if not file.endswith(".db") or not _NAME.fullmatch(collection):
                raise CognateError(f"this is no index in Milvus; {_FORMS}")
            return cls(file, collection)
        server, *path = rest.removeprefix("//").split("/")
        if "@" in rest:
            raise CognateError(
                f"an index in Milvus is named without a password; give USER:PASSWORD in {TOKEN_VARIABLE}"
            )
        host, _, port = server.rpartition(":")
        if (
            scheme not in ("milvus", "milvus+tls")
            or not _HOST.fullmatch(host)
            or not re.fullmatch(r"[0-9]{1,5}", port)
            or not 1 <= len(path) <= 2
            or not all(_NAME.fullmatch(name) for name in path)
        ):
            raise CognateError(f"this is no index in Milvus; {_FORMS}, of letters, digits and underscores")
        return cls(server, path[-1], path[0] if len(path) == 2 else "", scheme == "milvus+tls")

    def of(self, collection: str) -> "MilvusLocation":
        """Another collection at the same place."""
        return MilvusLocation(self.server, collection, self.database, self.tls)

    def is_beside(self, other: "MilvusLocation") -> bool:
        """Whether another collection is at the same place."""
        return self.of("") == other.of("")

    @property
    def local_path(self) -> Path:
        """Where a job keeps, on this machine, what it has to: a name beside the file, else in this folder."""
        folder = Path(self.server).parent if self.is_file else Path()
        return folder / f"{self.collection}.milvus"

    def __str__(self) -> str:
        if self.is_file:
            return f"milvus:{self.server}/{self.collection}"
        database = f"{self.database}/" if self.database else ""
        return f"milvus{'+tls' if self.tls else ''}://{self.server}/{database}{self.collection}"


@dataclass(frozen=True, slots=True)
class MilvusOptions:
    """How to talk to Milvus.

    Attributes:
        token: USER:PASSWORD, or an API key; empty where the server asks for none. Never shown.
        consistency: How new what a search finds must be: "session" has all that this process wrote, "strong"
            all that anybody wrote, "bounded" may be some seconds behind, "eventually" any time.
        timeout: Seconds after which a call to Milvus is given up.
    """

    token: str = field(default="", repr=False)
    consistency: Consistency = "session"
    timeout: float = 5.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """What COGNATE_MILVUS_TOKEN, COGNATE_MILVUS_CONSISTENCY and COGNATE_MILVUS_TIMEOUT say, for commands.

        Raises:
            CognateError: One has a value that it cannot have.
        """
        consistency = environment.get("COGNATE_MILVUS_CONSISTENCY") or cls().consistency
        known: dict[str, Consistency] = {name: name for name in get_args(Consistency)}
        if consistency not in known:
            raise CognateError(
                f"COGNATE_MILVUS_CONSISTENCY is {consistency!r}; give one of {', '.join(known)}"
            )
        timeout = environment.get("COGNATE_MILVUS_TIMEOUT") or str(cls().timeout)
        try:
            seconds = float(timeout)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= 3600:
            raise CognateError(
                f"COGNATE_MILVUS_TIMEOUT is {timeout!r}; give seconds, more than 0 and up to 3600"
            )
        return cls(environment.get(TOKEN_VARIABLE, ""), known[consistency], seconds)


def is_milvus(text: str) -> bool:
    """Whether a location is meant to be one in Milvus, right or wrong."""
    return text.startswith(("milvus:", "milvus+"))
