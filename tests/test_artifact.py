"""Artifacts are whole or absent; what is damaged is refused, what is not ours is left alone."""

import contextlib
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cognate.artifact import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PART_BYTES,
    Manifest,
    check_destination,
    kind_of,
    publishing,
    sha256_file,
)
from cognate.errors import ArtifactError


class NotesManifest(Manifest):
    """A kind of artifact for these tests."""

    KIND: ClassVar[str] = "notes"
    FORMAT_VERSION: ClassVar[int] = 3
    LIBRARIES: ClassVar[tuple[str, ...]] = ("numpy", "not-installed-anywhere")

    title: str


FILES = {"a.txt": b"first", "sub/b.bin": bytes(range(256)) * 40, "sub/empty": b""}


def fill(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def publish(
    destination: Path,
    *,
    title: str = "ours",
    force: bool = False,
    at_last: Callable[[Path], object] = lambda folder: None,
) -> NotesManifest:
    with publishing(destination, NotesManifest.KIND, force=force) as folder:
        fill(folder)
        manifest = NotesManifest.write(folder, title=title)
        at_last(folder)
        return manifest


def ending_with(error: BaseException) -> Callable[[Path], object]:
    def end(folder: Path) -> None:
        raise error

    return end


def write_too_much(folder: Path) -> None:
    (folder / "large").write_bytes(bytes(100_000))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    publish(tmp_path / "notes")
    return tmp_path / "notes"


def edit_manifest(folder: Path, **fields: object) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(raw | fields))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden names included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


# Opening


def test_a_whole_artifact_opens_and_says_what_wrote_it(notes: Path) -> None:
    manifest = NotesManifest.read(notes)
    assert (manifest.title, manifest.artifact, manifest.format_version) == ("ours", "notes", 3)
    assert set(manifest.versions) == {"cognate", "numpy"}
    assert manifest.created_at.tzinfo is not None
    assert {name: digest.size for name, digest in manifest.files.items()} == {
        name: len(content) for name, content in FILES.items()
    }
    assert manifest.files["a.txt"].sha256 == sha256_file(notes / "a.txt")
    assert kind_of(notes) == "notes"


def test_a_large_file_is_compared_in_parts_and_a_byte_of_any_of_them_is_noticed(tmp_path: Path) -> None:
    size = 2 * PART_BYTES + 3
    with publishing(tmp_path / "notes", NotesManifest.KIND) as folder:
        (folder / "large").touch()
        os.truncate(folder / "large", size)
        NotesManifest.write(folder, title="large")
    large = tmp_path / "notes" / "large"
    (digest,) = NotesManifest.read(tmp_path / "notes").files.values()
    zeros = hashlib.sha256(bytes(PART_BYTES)).hexdigest()
    assert digest.parts == [zeros, zeros, hashlib.sha256(bytes(3)).hexdigest()]
    assert digest.sha256 == sha256_file(large)
    for place in (0, PART_BYTES - 1, PART_BYTES, size - 1):
        with large.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
            file.flush()
            with pytest.raises(ArtifactError, match=r"large was altered"):
                NotesManifest.read(tmp_path / "notes")
            file.seek(place)
            file.write(b"\0")
    NotesManifest.read(tmp_path / "notes")


def test_a_large_file_whose_manifest_has_no_parts_is_compared_as_a_whole(tmp_path: Path) -> None:
    with publishing(tmp_path / "notes", NotesManifest.KIND) as folder:
        (folder / "large").write_bytes(bytes(PART_BYTES) + b"end")
        NotesManifest.write(folder, title="large")
    large = tmp_path / "notes" / "large"
    digest = {"sha256": sha256_file(large), "size": large.stat().st_size}
    edit_manifest(tmp_path / "notes", files={"large": digest})
    assert NotesManifest.read(tmp_path / "notes").files["large"].parts == []
    large.write_bytes(bytes(PART_BYTES) + b"End")
    with pytest.raises(ArtifactError, match=r"large was altered"):
        NotesManifest.read(tmp_path / "notes")


def test_parts_that_do_not_cover_a_file_are_refused(notes: Path) -> None:
    sha256 = sha256_file(notes / "a.txt")
    for parts in ([sha256, sha256], [sha256] * 3):
        digest = {"sha256": sha256, "size": (notes / "a.txt").stat().st_size, "parts": parts}
        edit_manifest(notes, files={"a.txt": digest})
        with pytest.raises(ArtifactError, match=r"parts of a\.txt, which do not cover it"):
            NotesManifest.read(notes)


def test_it_opens_from_another_place_and_through_a_link(notes: Path, tmp_path: Path) -> None:
    manifest = NotesManifest.read(notes)
    moved = notes.rename(tmp_path / "moved")
    assert NotesManifest.read(moved) == manifest
    (tmp_path / "link").symlink_to(moved)
    assert NotesManifest.read(tmp_path / "link") == manifest


Damage = Callable[[Path], object]

DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing file": (lambda notes: (notes / "sub/b.bin").unlink(), r"notes/sub/b\.bin is missing"),
    "folder for a file": (
        lambda notes: ((notes / "a.txt").unlink(), (notes / "a.txt").mkdir()),
        r"notes/a\.txt is missing",
    ),
    "truncated file": (
        lambda notes: os.truncate(notes / "sub/b.bin", 10_239),
        r"sub/b\.bin has 10239 bytes where the manifest says 10240",
    ),
    "longer file": (lambda notes: (notes / "sub/empty").write_bytes(b"x"), "sub/empty has 1 bytes"),
    "byte changed": (lambda notes: (notes / "a.txt").write_bytes(b"firsT"), r"a\.txt was altered"),
    "no manifest": (lambda notes: (notes / MANIFEST).unlink(), "is not a notes: it has no manifest.json"),
    "empty manifest": (lambda notes: (notes / MANIFEST).write_bytes(b""), "is not a JSON object"),
    "truncated manifest": (lambda notes: os.truncate(notes / MANIFEST, 100), "is not a JSON object"),
    "binary manifest": (lambda notes: (notes / MANIFEST).write_bytes(b"\xff\x00"), "is not a JSON object"),
    "list for a manifest": (lambda notes: (notes / MANIFEST).write_text("[]"), "is not a JSON object"),
    "deep manifest": (lambda notes: (notes / MANIFEST).write_text("[" * 200_000), "is not a JSON object"),
    "huge manifest": (
        lambda notes: os.truncate(notes / MANIFEST, MAX_MANIFEST_BYTES + 1),
        f"has more than {MAX_MANIFEST_BYTES} bytes",
    ),
    "other kind": (lambda notes: edit_manifest(notes, artifact="bundle"), "is not a notes: .* 'bundle'"),
    "no kind": (lambda notes: edit_manifest(notes, artifact=None), "is not a notes"),
    "too new": (
        lambda notes: edit_manifest(notes, format_version=4),
        "format 4, newer than the 3 that this cognate reads; upgrade",
    ),
    "too old": (
        lambda notes: edit_manifest(notes, format_version=2),
        "format 2, older than the 3 that this cognate reads; write the notes again",
    ),
    "no version": (lambda notes: edit_manifest(notes, format_version="x"), "format x"),
    "missing field": (lambda notes: edit_manifest(notes, title=None), "field title: "),
    "bad digest": (lambda notes: edit_manifest(notes, files={"a.txt": 5}), r"field files\.a\.txt: "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_refused_with_the_file_and_the_reason(notes: Path, damage: str) -> None:
    inflict, reason = DAMAGES[damage]
    inflict(notes)
    with pytest.raises(ArtifactError, match=reason) as caught:
        NotesManifest.read(notes)
    assert str(notes) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.sampled_from([*FILES, MANIFEST]), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_byte_changed_in_any_file_is_noticed(notes: Path, name: str, data: st.DataObject) -> None:
    before = (notes / name).read_bytes()
    whole = NotesManifest.read(notes)
    if not before:
        return
    position = data.draw(st.integers(0, len(before) - 1))
    flipped = before[position] ^ data.draw(st.integers(1, 255))
    (notes / name).write_bytes(before[:position] + bytes([flipped]) + before[position + 1 :])
    try:
        if name == MANIFEST:
            # The manifest vouches for the files, not for itself: it may read, but never crash.
            with contextlib.suppress(ArtifactError):
                NotesManifest.read(notes)
        else:
            with pytest.raises(ArtifactError, match="was altered"):
                NotesManifest.read(notes)
    finally:
        (notes / name).write_bytes(before)
    assert NotesManifest.read(notes) == whole


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/etc/hostname", "sub/../../outside.txt", "..", "a\x00b", "\ud800", "x" * 5000]
)
def test_a_manifest_cannot_name_what_lies_outside_or_cannot_be(notes: Path, name: str) -> None:
    (notes.parent / "outside.txt").write_bytes(b"secret")
    digest = {"sha256": sha256_file(notes.parent / "outside.txt"), "size": 6}
    edit_manifest(notes, files={name: digest})
    with pytest.raises(
        ArtifactError, match="outside its folder; do not use it|cannot be read: File name too long"
    ):
        NotesManifest.read(notes)


def test_a_link_to_what_lies_outside_is_refused_and_so_is_one_in_a_circle(notes: Path) -> None:
    outside = notes.parent / "outside.txt"
    outside.write_bytes(FILES["a.txt"])
    (notes / "a.txt").unlink()
    (notes / "a.txt").symlink_to(outside)
    with pytest.raises(ArtifactError, match="outside its folder"):
        NotesManifest.read(notes)
    (notes / "a.txt").unlink()
    (notes / "a.txt").symlink_to("a.txt")
    with pytest.raises(ArtifactError):
        NotesManifest.read(notes)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_folder_is_no_artifact(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=f"{name} (does not exist|is not a notes)"):
        NotesManifest.read(tmp_path / name)
    assert kind_of(tmp_path / name) is None


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Act as a user without rights, which the tests may not be."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_an_artifact_that_may_not_be_read_is_one_clear_error(notes: Path) -> None:
    for path in (notes / "a.txt", notes.parent):
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            with (
                unprivileged(),
                pytest.raises(ArtifactError, match=r"notes cannot be read: Permission denied"),
            ):
                NotesManifest.read(notes)
        finally:
            path.chmod(mode)


# Publishing


def test_what_is_published_appears_whole_with_nothing_beside_it(tmp_path: Path) -> None:
    with publishing(tmp_path / "new/notes", NotesManifest.KIND) as folder:
        fill(folder)
        NotesManifest.write(folder, title="x")
        assert not (tmp_path / "new/notes").exists()
        # A sibling, so that the rename stays on one disk.
        assert folder.parent == tmp_path / "new"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["notes"]
    NotesManifest.read(tmp_path / "new/notes")


def test_others_may_read_what_is_published(notes: Path) -> None:
    assert notes.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, ArtifactError])
def test_what_ends_early_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="enough"):
        publish(tmp_path / "notes", at_last=ending_with(error("enough")))
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_ends_early_leaves_the_artifact_that_was_there(notes: Path, error: type[BaseException]) -> None:
    before = tree(notes.parent)
    with pytest.raises(error, match="enough"):
        publish(notes, force=True, at_last=ending_with(error("enough")))
    assert tree(notes.parent) == before


def test_a_process_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from pathlib import Path; from cognate.artifact import publishing\n"
        "with publishing(Path(sys.argv[1]), 'notes') as folder:\n"
        "    (folder / 'a').write_bytes(b'x'); print('writing', flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "notes")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"writing\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode != 0
    assert tree(tmp_path) == {}


def test_an_artifact_that_is_there_is_replaced_only_by_force(notes: Path) -> None:
    with pytest.raises(ArtifactError, match="notes exists; give another --out, or --force"):
        publish(notes, title="newer")
    assert NotesManifest.read(notes).title == "ours"
    publish(notes, title="newer", force=True)
    assert NotesManifest.read(notes).title == "newer"
    assert [path.name for path in notes.parent.iterdir()] == ["notes"]


def test_a_damaged_artifact_of_ours_is_replaced_by_force(notes: Path) -> None:
    (notes / "a.txt").unlink()
    publish(notes, title="newer", force=True)
    assert NotesManifest.read(notes).title == "newer"


@pytest.mark.parametrize("manifest", [None, "{}", "[]", "nonsense", '{"name": "my web app"}'])
def test_a_folder_that_is_not_ours_is_never_deleted(tmp_path: Path, manifest: str | None) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    if manifest:
        (mine / MANIFEST).write_text(manifest)
    before = tree(tmp_path)
    with pytest.raises(ArtifactError, match="is not a notes of cognate's"):
        publish(mine, force=True)
    assert tree(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    publish(tmp_path / "notes")
    NotesManifest.read(tmp_path / "notes")


@pytest.mark.parametrize("force", [False, True])
def test_what_came_to_the_destination_meanwhile_is_kept(tmp_path: Path, force: bool) -> None:
    def meanwhile(folder: Path) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes/other.txt").write_text("of another process")

    with pytest.raises(ArtifactError, match="exists"):
        publish(tmp_path / "notes", force=force, at_last=meanwhile)
    assert tree(tmp_path) == {"notes": None, "notes/other.txt": b"of another process"}


@pytest.mark.parametrize("force", [False, True])
def test_a_file_or_a_link_in_the_way_is_refused(notes: Path, force: bool) -> None:
    (notes.parent / "file").write_text("precious")
    (notes.parent / "link").symlink_to(notes)
    (notes.parent / "dangling").symlink_to("nowhere")
    for name in ("file", "link", "dangling"):
        with pytest.raises(ArtifactError, match=f"{name} exists and is not a folder"):
            publish(notes.parent / name, force=force)
    assert (notes.parent / "file").read_text() == "precious"


def test_a_place_below_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for destination in (tmp_path / "file/notes", tmp_path / "file/deeper/notes"):
        with pytest.raises(ArtifactError, match=r"file is not a folder, so .*notes cannot be written"):
            check_destination(destination, NotesManifest.KIND, force=False)


def test_a_name_that_no_folder_can_have_is_one_clear_error(tmp_path: Path) -> None:
    for length in (250, 300):  # 250: too long only with what the temporary name adds.
        with pytest.raises(ArtifactError, match="cannot be written: File name too long"):
            publish(tmp_path / ("x" * length))
    assert tree(tmp_path) == {}


def test_an_unwritable_parent_is_refused(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o555)
    with unprivileged(), pytest.raises(ArtifactError, match="(not writable|Permission denied)"):
        publish(parent / "notes")
    assert tree(tmp_path) == {"parent": None}


def test_a_system_folder_that_takes_no_files_is_refused() -> None:
    with pytest.raises(ArtifactError, match="/proc/notes c.* be written"):
        publish(Path("/proc/notes"))


def test_a_full_disk_is_told_and_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(ArtifactError, match="notes could not be written: No space left on device"):
        publish(small_disk / "notes", at_last=write_too_much)
    assert tree(small_disk) == {}


def test_a_full_disk_leaves_the_artifact_that_was_there(small_disk: Path) -> None:
    publish(small_disk / "notes")
    with pytest.raises(ArtifactError, match="No space left"):
        publish(small_disk / "notes", force=True, at_last=write_too_much)
    assert NotesManifest.read(small_disk / "notes").title == "ours"
    assert [path.name for path in small_disk.iterdir()] == ["notes"]


def test_a_file_larger_than_is_allowed_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    try:
        with pytest.raises(ArtifactError, match="File too large"):
            publish(tmp_path / "notes", at_last=write_too_much)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert tree(tmp_path) == {}


def test_force_never_replaces_an_artifact_of_another_kind(tmp_path: Path) -> None:
    publish(tmp_path / "notes")
    with (
        pytest.raises(ArtifactError, match="exists and is not an index of cognate's"),
        publishing(tmp_path / "notes", "index", force=True),
    ):
        raise AssertionError("it was let in")
    assert NotesManifest.read(tmp_path / "notes").title == "ours"
