"""Folders that are whole or absent, with a manifest that vouches for every file in them.

A folder is written beside its destination, flushed to disk and renamed into place, so that a reader
never sees half of one. Opening one compares every file with the manifest.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Self

import pydantic

from cognate.errors import ArtifactError
from cognate.processors import available_cores

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024

PART_BYTES = 64 * 1024 * 1024
"""Of the parts of a file that have a sha256 each. Part of the format of every artifact."""

READ_BYTES = 256 * 1024


class FileDigest(pydantic.BaseModel):
    """What a file of an artifact must be.

    Attributes:
        sha256: Of its bytes, in hexadecimal.
        size: In bytes.
        parts: Where it is larger than PART_BYTES, the sha256 of each run of so many bytes. They are what a
            reader compares, on all cores: one core takes a second for 1.8 GB.
    """

    sha256: str
    size: int
    parts: list[str] = []

    @classmethod
    def of(cls, path: Path) -> Self:
        """Of a file as it is."""
        size = path.stat().st_size
        with ThreadPoolExecutor(available_cores()) as pool:
            starts = range(0, size, PART_BYTES) if size > PART_BYTES else ()
            parts = pool.map(sha256_part, itertools.repeat(path), starts, itertools.repeat(PART_BYTES))
            return cls(sha256=sha256_file(path), size=size, parts=list(parts))

    @property
    def compared(self) -> list[tuple[int, int, str]]:
        """What a reader compares: where each run begins, its bytes at most, and its sha256."""
        if not self.parts:
            return [(0, self.size, self.sha256)]
        return [(number * PART_BYTES, PART_BYTES, part) for number, part in enumerate(self.parts)]


class Manifest(pydantic.BaseModel):
    """What every artifact says of itself. Each kind adds its own fields.

    Attributes:
        artifact: "checkpoint", "bundle" or "index".
        format_version: Of the artifact's layout; another than this library's is refused.
        created_at: When it was written, in UTC.
        versions: Of the libraries that wrote it, by name.
        files: Every other file in the folder, by its path relative to it.
    """

    KIND: ClassVar[str]
    FORMAT_VERSION: ClassVar[int]
    LIBRARIES: ClassVar[tuple[str, ...]]

    artifact: str
    format_version: int
    created_at: datetime
    versions: dict[str, str]
    files: dict[str, FileDigest]

    @classmethod
    def write(cls, folder: Path, **fields: object) -> Self:
        """Describe all that lies in ``folder`` and write its manifest.

        Args:
            folder: Holds every other file of the artifact already.
            fields: The fields that this kind adds.

        Returns:
            The manifest.
        """
        manifest = cls.model_validate(
            {
                "artifact": cls.KIND,
                "format_version": cls.FORMAT_VERSION,
                # To the microsecond, so that two indexes of the same records are two versions.
                "created_at": datetime.now(UTC),
                "versions": installed_versions("cognate", *cls.LIBRARIES),
                "files": {
                    path.relative_to(folder).as_posix(): FileDigest.of(path)
                    for path in sorted(folder.rglob("*"))
                    if path.is_file() and path != folder / MANIFEST
                },
                **fields,
            }
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Open an artifact's manifest and compare every file with it.

        Args:
            folder: The artifact.

        Returns:
            The manifest, of a folder that is whole and unaltered.

        Raises:
            ArtifactError: It is not there, no artifact of this kind, too new or too old, or a file is
                missing, truncated, altered.
        """
        raw = read_json(folder, cls.KIND)
        if raw.get("artifact") != cls.KIND:
            raise ArtifactError(
                f"{folder} is not {with_article(cls.KIND)}: its {MANIFEST} says {raw.get('artifact')!r}; "
                f"give the folder of {with_article(cls.KIND)}"
            )
        version = raw.get("format_version")
        if not isinstance(version, int) or version > cls.FORMAT_VERSION:
            raise ArtifactError(
                f"{folder} has {cls.KIND} format {version}, newer than the {cls.FORMAT_VERSION} that this "
                "cognate reads; upgrade cognate, or write it again with this version"
            )
        if version < cls.FORMAT_VERSION:
            raise ArtifactError(
                f"{folder} has {cls.KIND} format {version}, older than the {cls.FORMAT_VERSION} that this "
                f"cognate reads; write the {cls.KIND} again"
            )
        try:
            manifest = cls.model_validate(raw)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                f"{folder / MANIFEST}: field {where}: {first['msg']}; write the {cls.KIND} again"
            ) from None
        with _os_errors_told(folder, "read"):
            manifest._check_files(folder)
        return manifest

    def _check_files(self, folder: Path) -> None:
        for name, digest in self.files.items():
            path = folder / name
            try:
                inside = path.resolve().is_relative_to(folder.resolve())
            except (ValueError, RuntimeError):  # A name that no file can have, links in a circle.
                inside = False
            if not inside:
                raise ArtifactError(f"{folder / MANIFEST} names {name!r}, outside its folder; do not use it")
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; copy or write the {self.KIND} again")
            size = path.stat().st_size
            if size != digest.size:
                raise ArtifactError(
                    f"{path} has {size} bytes where the manifest says {digest.size}; "
                    f"copy or write the {self.KIND} again"
                )
            if digest.parts and len(digest.parts) != -(-size // PART_BYTES):
                raise ArtifactError(
                    f"{folder / MANIFEST} has {len(digest.parts)} parts of {name}, which do not cover it; "
                    f"copy or write the {self.KIND} again"
                )
        # In threads: of a large index, reading its files is what opening it takes. The largest first.
        runs = [
            (name, start, length, sha256)
            for name in sorted(self.files, key=lambda name: -self.files[name].size)
            for start, length, sha256 in self.files[name].compared
        ]
        with ThreadPoolExecutor(min(len(runs), available_cores()) or 1) as pool:
            found = pool.map(lambda run: sha256_part(folder / run[0], run[1], run[2]), runs)
            for (name, _, _, expected), sha256 in zip(runs, found, strict=True):
                if sha256 != expected:
                    raise ArtifactError(
                        f"{folder / name} was altered: its sha256 is not the manifest's; "
                        f"copy or write the {self.KIND} again"
                    )


def read_json(folder: Path, kind: str) -> dict[str, object]:
    """Read an artifact's manifest as it stands, unchecked.

    Args:
        folder: The artifact.
        kind: What it should be, for the message.

    Returns:
        The JSON object.

    Raises:
        ArtifactError: There is no such folder, no manifest in it, or one that is no JSON object.
    """
    content = _manifest_bytes(folder, kind)
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise ArtifactError(f"{folder / MANIFEST} is not a JSON object; copy or write the {kind} again")
    return raw


def manifest_digest(folder: Path, kind: str) -> str:
    """The sha256 of an artifact's manifest: as that vouches for every other file, it tells contents apart.

    Args:
        folder: The artifact; its files are not checked.
        kind: What it should be, for the message.

    Raises:
        ArtifactError: There is no such folder, or no manifest in it.
    """
    return hashlib.sha256(_manifest_bytes(folder, kind)).hexdigest()


def _manifest_bytes(folder: Path, kind: str) -> bytes:
    path = folder / MANIFEST
    with _os_errors_told(folder, "read"):
        if not folder.exists():
            raise ArtifactError(f"{folder} does not exist; give the folder of {with_article(kind)}")
        if not path.is_file():
            raise ArtifactError(f"{folder} is not {with_article(kind)}: it has no {MANIFEST}")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{path} has more than {MAX_MANIFEST_BYTES} bytes; it is no manifest of ours")
        return path.read_bytes()


def with_article(kind: str) -> str:
    """Name a kind of artifact in a sentence: "an index", "a bundle"."""
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def kind_of(folder: Path) -> str | None:
    """Tell what kind of artifact a folder says it is.

    Args:
        folder: Any path.

    Returns:
        "checkpoint", "bundle", "index", or None where it is no artifact.
    """
    try:
        kind = read_json(folder, "artifact").get("artifact")
    except ArtifactError:
        return None
    return kind if isinstance(kind, str) else None


def check_destination(destination: Path, kind: str, *, force: bool) -> None:
    """Refuse a place where an artifact cannot be written, before any work is done.

    Args:
        destination: The folder that will be made.
        kind: What it will be.
        force: Whether an artifact of that kind that is there may be replaced.

    Raises:
        ArtifactError: Something is there (and ``force`` is off, or it is no artifact of that kind, which
            is never deleted), or its parent cannot be written to.
    """
    with _os_errors_told(destination, "written"):
        if destination.exists() or destination.is_symlink():
            if destination.is_symlink() or not destination.is_dir():
                raise ArtifactError(f"{destination} exists and is not a folder; give another --out")
            if any(destination.iterdir()):
                if not force:
                    raise ArtifactError(f"{destination} exists; give another --out, or --force to replace it")
                if kind_of(destination) != kind:
                    raise ArtifactError(
                        f"{destination} exists and is not {with_article(kind)} of cognate's, so --force does "
                        "not delete it; give another --out, or remove it yourself"
                    )
        parent = destination.absolute().parent
        existing = next(path for path in (parent, *parent.parents) if path.exists())
        if not existing.is_dir():
            raise ArtifactError(f"{existing} is not a folder, so {destination} cannot be written")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ArtifactError(f"{existing} is not writable, so {destination} cannot be written")


@contextlib.contextmanager
def _os_errors_told(path: Path, what: str) -> Iterator[None]:
    """Turn what the operating system refuses, a permission or a name too long, into our own error."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{path} cannot be {what}: {error.strerror or error}") from error


@contextlib.contextmanager
def publishing(
    destination: Path, kind: str, *, force: bool = False, within: Path | None = None
) -> Iterator[Path]:
    """Give a temporary folder to write an artifact in, and rename it into place at the end.

    Whatever ends the block early, an error or Ctrl-C, removes the temporary folder and leaves what was
    at the destination untouched.

    Args:
        destination: Where the artifact shall be.
        kind: What it will be.
        force: Whether an artifact of that kind that is there is replaced.
        within: A folder on the destination's disk for the temporary folder; None: beside the destination.

    Yields:
        The temporary folder.

    Raises:
        ArtifactError: As ``check_destination``, or the disk is full or fails.
    """
    check_destination(destination, kind, force=force)
    with _os_errors_told(destination, "written"):
        destination.absolute().parent.mkdir(parents=True, exist_ok=True)
        partial = Path(
            tempfile.mkdtemp(
                prefix=f".{destination.name}.",
                suffix=".partial",
                dir=within or destination.absolute().parent,
            )
        )
    try:
        yield partial
        partial.chmod(0o755)
        sync_tree(partial)
        _rename(partial, destination, kind, force=force)
    except OSError as error:
        if error.errno is None:
            raise
        raise ArtifactError(f"{destination} could not be written: {os.strerror(error.errno)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename(partial: Path, destination: Path, kind: str, *, force: bool) -> None:
    if destination.exists() and any(destination.iterdir()):
        check_destination(destination, kind, force=force)
        old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".old", dir=partial.parent))
        destination.rename(old)
        try:
            partial.rename(destination)
        except BaseException:
            old.rename(destination)
            raise
        shutil.rmtree(old)
    else:
        partial.rename(destination)
    sync_path(destination.absolute().parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder``, and itself, to the disk."""
    for path in (*folder.rglob("*"), folder):
        sync_path(path)


def sync_path(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_part(path: Path, start: int, length: int) -> str:
    """The sha256, in hexadecimal, of some bytes of a file, or of those of them that there are."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))
    left = length
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (count := file.readinto(buffer[:left])):
            digest.update(buffer[:count])
            left -= count
    return digest.hexdigest()


def installed_versions(*names: str) -> dict[str, str]:
    """The installed versions of packages, those that are there, by name."""
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
