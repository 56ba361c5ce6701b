"""API keys, and the file that says what each may do. The file holds hashes, never keys.

A key is 256 random bits. A plain sha256 of it suffices: salt and slow hashes protect what people choose,
which can be guessed from a list; of 2^256 keys there is no list, and no two are alike.
"""

import hashlib
import secrets
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from cognate.errors import CognateError

Right = Literal["encode", "search", "write", "admin"]

PREFIX = "cognate_"
"""What every key begins with, so that scanners for leaked secrets can find one."""

MAX_FILE_BYTES = 1024 * 1024

_Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_PerSecond = Annotated[float, pydantic.Field(gt=0, le=1e9, allow_inf_nan=False)]


class Key(pydantic.BaseModel):
    """A key, as the file tells of it.

    Attributes:
        name: Who has it; for logs and refusals.
        sha256: Of the key's UTF-8, in hexadecimal.
        rights: What it may do.
        indexes: The indexes that it may search, write to and administer. None: all.
        calls_per_second: How many calls it may make. None: any number.
        texts_per_second: How many texts, records and queries its calls may have, each part of a combined one
            counted. None: any number.
        burst_seconds: How long unused calls and texts are kept: what can come at once is the rate times this.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: _Name
    sha256: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
    rights: Annotated[frozenset[Right], pydantic.Field(min_length=1)]
    indexes: Annotated[frozenset[_Name], pydantic.Field(min_length=1)] | None = None
    calls_per_second: _PerSecond | None = None
    texts_per_second: _PerSecond | None = None
    burst_seconds: Annotated[float, pydantic.Field(gt=0, le=86400, allow_inf_nan=False)] = 1.0


class _File(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    keys: Annotated[list[Key], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _check_twins(self) -> Self:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"two keys have the {what} {value}; give each its own")
        return self


def read_keys(file: Path) -> list[Key]:
    """Read a file of keys.

    Args:
        file: TOML, a table ``[[keys]]`` for each.

    Raises:
        CognateError: It cannot be read, or an entry is wrong.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise CognateError(f"{file} is larger than {MAX_FILE_BYTES} bytes; give fewer keys")
        return _File.model_validate(tomllib.loads(content.decode())).keys
    except OSError as error:
        raise CognateError(f"{file} cannot be read: {error.strerror}; give a file of keys") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CognateError(f"{file} is no TOML file: {error}") from None
    except pydantic.ValidationError as error:
        raise CognateError(f"{file}: {_sentence(error.errors()[0])}") from None


def new_key() -> str:
    """Make a key."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """The sha256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def entry(key: Key) -> str:
    """A key's entry in the file, as TOML."""
    lines = ["[[keys]]"]
    for name, value in key.model_dump(exclude_none=True, exclude_defaults=True).items():
        if isinstance(value, frozenset):
            value = sorted(value)
        # A TOML string, number or array of these looks as Python's does, but for the quotes.
        lines.append(f"{name} = {value!r}".replace("'", '"'))
    return "\n".join(lines) + "\n"


def _sentence(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"there is no {where}; a key has {', '.join(Key.model_fields)}"
    # What is wrong is not shown: it may be a key that was put where its hash belongs.
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}"
