"""Record files at a URL, read piece by piece through fsspec: http(s), s3, gs and what else it knows."""

import contextlib
import errno
import glob
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeVar
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

THROTTLED = (429, 502, 503, 504)
"""Answers of a server that is asked for too much, or has none just now."""

ATTEMPTS = 6
BACKOFF = 0.5
"""Seconds before a request that was throttled is made again, then twice as many, and so on: 15 in all."""

MAX_WAIT = 60.0
"""Seconds that a server may ask to wait, by Retry-After."""

_Found = TypeVar("_Found")


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
            file = _patiently(lambda: self.filesystem.open(self.path, "rb", block_size=BLOCK))
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
            # A file that failed to read stays where it was.
            read = _patiently(lambda: self._file.read(len(buffer)))
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
        CognateError: It is no URL, there is no file, it cannot be reached, or a package that is needed is not
            installed.
    """
    protocol = url.partition("://")[0].lower()
    try:
        name = _without_secrets(url)
    except ValueError:
        # Of one that cannot be taken apart, nothing can be shown that is surely no secret.
        raise CognateError(
            f"the URL that begins with {protocol}:// has a host that is none; brackets are for IPv6 "
            f"addresses, such as {protocol}://[::1]/records.jsonl"
        ) from None
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
    except Exception as error:
        # Some protocols, such as ftp, connect already here.
        raise _unreadable(name, url, error) from error
    is_pattern = protocol not in ("http", "https") and glob.has_magic(path)
    with _errors_told(name, path):
        paths = sorted(_patiently(lambda: filesystem.glob(path))) if is_pattern else [path]
        if not paths:
            raise CognateError(f"no file is named like {name}; give a pattern of record files")
        return [
            Remote(
                _without_secrets(filesystem.unstrip_protocol(each)) if is_pattern else name,
                _patiently(lambda each=each: filesystem.info(each)).get("size"),  # type: ignore[misc]
                filesystem,
                each,
            )
            for each in paths
        ]


def _patiently(work: Callable[[], _Found]) -> _Found:
    """Do it, again and again where the store throttles it."""
    for failed in range(ATTEMPTS):
        try:
            return work()
        except Exception as error:
            cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
            if failed == ATTEMPTS - 1 or cause is None or not _is_throttled(cause):
                raise
            pause = max(BACKOFF * 2**failed, _retry_after(cause))
        time.sleep(pause)
    raise AssertionError


def _is_throttled(error: BaseException) -> bool:
    # s3fs has tried again by itself, and says so by an errno.
    return getattr(error, "status", None) in THROTTLED or (
        isinstance(error, OSError) and error.errno == errno.EBUSY
    )


def _retry_after(error: BaseException) -> float:
    """Seconds that the server asked to wait; 0 where it did not, or gave a date."""
    headers = getattr(error, "headers", None) or {}
    try:
        return min(MAX_WAIT, max(0.0, float(headers.get("Retry-After", 0))))
    except ValueError:
        return 0.0


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
        raise _unreadable(name, path, error) from error


def _unreadable(name: str, path: str, error: Exception) -> CognateError:
    return CognateError(f"{name} cannot be read: {_reason(error).replace(path, name)}; try again later")


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"the server answered {status} {getattr(error, 'message', '')}".rstrip()
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
