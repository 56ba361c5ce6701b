"""Record files at a URL, read piece by piece through fsspec: http(s), s3, gs and what else it knows."""

import contextlib
import glob
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

from cognate.errors import CognateError

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""What a user installs for a protocol; http comes with cognate[remote]."""

BLOCK = 4 * 1024 * 1024
"""Bytes that are asked for at a time."""

BUFFER = 1024 * 1024
"""Bytes that are read from fsspec at a time."""

SECONDS = 60
"""How long a server may be silent."""


@dataclass(frozen=True)
class Remote:
    """A file at a URL.

    Attributes:
        name: Its URL without user, password and query, which may hold secrets.
        size: In bytes; None where the server does not say.
        filesystem: fsspec's.
        path: Its name there.
    """

    name: str
    size: int | None
    filesystem: Any
    path: str

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open it for reading; whatever goes wrong on the way is a CognateError."""
        with _errors_told(self.name, self.path):
            file = self.filesystem.open(self.path, "rb", block_size=BLOCK)
        with contextlib.closing(file):
            yield io.BufferedReader(_Told(file, self.name, self.path), BUFFER)


class _Told(io.RawIOBase):
    """A file of fsspec's as a raw stream, with its errors told in a sentence."""

    def __init__(self, file: Any, name: str, path: str) -> None:
        self._file = file
        self._name = name
        self._path = path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _errors_told(self._name, self._path):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _errors_told(self._name, self._path):
            read = self._file.read(len(buffer))
        buffer[: len(read)] = read
        return len(read)


def is_remote(name: str) -> bool:
    """Whether a source is a URL and no path."""
    return "://" in name


def find_remote(url: str) -> list[Remote]:
    """Find the file at a URL, or those that its pattern matches, in the order of their names.

    Args:
        url: Of a file. In object stores ``*`` and the like match names; in http they stand for themselves.

    Raises:
        CognateError: There is none, it cannot be reached, or a package that is needed is not installed.
    """
    protocol = url.partition("://")[0].lower()
    name = _without_secrets(url)
    options: dict[str, Any] = {}
    try:
        import fsspec

        if protocol in ("http", "https"):
            import aiohttp

            # A request lasts as long as the encoder takes to use what it brings.
            options = {
                "client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_connect=SECONDS, sock_read=SECONDS)}
            }
        filesystem, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        package = PACKAGES.get(protocol, "'cognate[remote]'")
        raise CognateError(f"{name} needs what is not installed; run: pip install {package}") from error
    except ValueError as error:
        raise CognateError(f"{name} cannot be read: {error}") from None
    is_pattern = protocol not in ("http", "https") and glob.has_magic(path)
    with _errors_told(name, path):
        paths = sorted(filesystem.glob(path)) if is_pattern else [path]
        if not paths:
            raise CognateError(f"no file is named like {name}; give a pattern of record files")
        return [
            Remote(
                _without_secrets(filesystem.unstrip_protocol(each)) if is_pattern else name,
                filesystem.info(each).get("size"),
                filesystem,
                each,
            )
            for each in paths
        ]


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextlib.contextmanager
def _errors_told(name: str, path: str) -> Iterator[None]:
    try:
        yield
    except (CognateError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except Exception as error:
        # Each store's client has errors of its own; that of http calls whatever happens a missing file.
        missing = isinstance(error, FileNotFoundError)
        if (missing and error.__cause__ is None) or getattr(error.__cause__, "status", None) == 404:
            raise CognateError(f"{name} does not exist; give the URL of a file of records") from None
        if missing and isinstance(error.__cause__, Exception):
            error = error.__cause__
        raise CognateError(
            f"{name} cannot be read: {_reason(error).replace(path, name)}; try again later"
        ) from error


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"the server answered {status} {getattr(error, 'message', '')}".rstrip()
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
