"""``exporter.hub``: bundles to and from a hub, over real sockets to a stand-in on the loopback."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._http import reset_sessions

from cognate.artifact import MANIFEST
from cognate.bundle import Bundle, BundleManifest
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError
from exporter.hub import HubError, pull, push
from tests.hub_server import LARGE, TOKEN, HubServer

NAME = "org/tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        # What the library reads of the environment when it is imported; another test did that long ago.
        use(monkeypatch, server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        reset_sessions()
        yield server
    reset_sessions()


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_what_was_pushed_is_pulled_byte_by_byte(hub: HubServer, tiny_bundle: Path, tmp_path: Path) -> None:
    url = push(tiny_bundle, NAME)
    assert url == f"{hub.url}/{NAME}/commit/{list(hub.repositories[NAME])[-1]}"
    assert any(len(content) > LARGE for content in hub.files(NAME).values())
    pulled = pull(NAME, tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == contents(tiny_bundle)
    assert Encoder(pulled, device="cpu").encode(["the door"]) == pytest.approx(
        Encoder(tiny_bundle, device="cpu").encode(["the door"])
    )


def test_the_token_goes_to_the_hub_and_not_to_its_storage(
    hub: HubServer, tiny_bundle: Path, tmp_path: Path
) -> None:
    push(tiny_bundle, NAME)
    pull(NAME, tmp_path / "bundle")
    storage = [asked for asked in hub.asked if asked.host.startswith("localhost")]
    assert {asked.method for asked in storage} == {"PUT", "GET"}
    assert {asked.authorization for asked in storage} == {None}
    assert {asked.authorization for asked in hub.asked if asked not in storage} == {f"Bearer {TOKEN}"}


def test_a_push_is_one_commit_and_leaves_the_repositorys_other_files(
    hub: HubServer, tiny_bundle: Path, tmp_path: Path
) -> None:
    hub.commit(NAME, {"README.md": b"# mine\n", "onnx/old.onnx_data": b"of another bundle"})
    push(tiny_bundle, NAME)
    assert len(hub.repositories[NAME]) == 2
    assert hub.files(NAME)["README.md"] == b"# mine\n"
    pull(NAME, tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == contents(tiny_bundle)


def test_only_what_the_manifest_names_is_pushed(hub: HubServer, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "copy")
    (tmp_path / "copy/.env").write_text("secret")
    push(tmp_path / "copy", NAME)
    assert hub.files(NAME).keys() == {".gitattributes", *contents(tiny_bundle)}


def test_a_revision_is_pulled_as_it_was(hub: HubServer, tiny_bundle: Path, tmp_path: Path) -> None:
    push(tiny_bundle, NAME)
    first = next(iter(hub.repositories[NAME]))
    hub.commit(NAME, {"onnx/model.onnx": b"later"})
    assert pull(NAME, tmp_path / "bundle", revision=first).manifest == Bundle.open(tiny_bundle).manifest
    with pytest.raises(HubError, match="no such revision"):
        pull(NAME, tmp_path / "other", revision="none")


def test_pushing_the_same_again_and_replacing_with_force(
    hub: HubServer, tiny_bundle: Path, tmp_path: Path
) -> None:
    push(tiny_bundle, NAME)
    push(tiny_bundle, NAME)
    pull(NAME, tmp_path / "bundle")
    with pytest.raises(ArtifactError, match="exists.*--force"):
        pull(NAME, tmp_path / "bundle")
    pull(NAME, tmp_path / "bundle", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


# What a hub may hold that is not what was pushed: nothing is published.


def altered(files: dict[str, bytes]) -> None:
    content = bytearray(files["onnx/model.onnx"])
    content[len(content) // 2] ^= 1
    files["onnx/model.onnx"] = bytes(content)


def truncated(files: dict[str, bytes]) -> None:
    files["onnx/model.onnx"] = files["onnx/model.onnx"][:-1]


def missing(files: dict[str, bytes]) -> None:
    del files["tokenizer.json"]


def no_manifest(files: dict[str, bytes]) -> None:
    del files[MANIFEST]


def change_manifest(**fields: object) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files[MANIFEST] = json.dumps({**json.loads(files[MANIFEST]), **fields}).encode()

    return change


def other_manifest(files: dict[str, bytes]) -> None:
    files[MANIFEST] = b"{}"


def outside(name: str) -> Callable[[dict[str, bytes]], None]:
    return change_manifest(files={name: {"sha256": "0" * 64, "size": 1}})


def other_kind(files: dict[str, bytes]) -> None:
    change_manifest(artifact="index")(files)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (altered, "model.onnx was altered"),
        (truncated, "has onnx/model.onnx with .* bytes where"),
        (missing, "lacks tokenizer.json"),
        (no_manifest, "holds no bundle: it has no manifest.json"),
        (other_manifest, "holds no bundle of this version"),
        (other_kind, "is not a bundle"),
        (change_manifest(format_version=99), "newer than"),
        (
            change_manifest(fingerprint="0" * 64),
            "has the fingerprint .* where its manifest says 000000000000",
        ),
        (outside("../../evil"), "outside its folder"),
        (outside("/etc/evil"), "outside its folder"),
        (outside("..\\evil"), "outside its folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_what_was_pushed_is_never_published(
    spoil: Callable[[dict[str, bytes]], None],
    message: str,
    hub: HubServer,
    tiny_bundle: Path,
    tmp_path: Path,
) -> None:
    files = contents(tiny_bundle)
    spoil(files)
    hub.commit(NAME, files)
    with pytest.raises(CognateError, match=message) as raised:
        pull(NAME, tmp_path / "bundle")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_larger_than_the_disk_is_refused_before_it_is_fetched(
    hub: HubServer, tiny_bundle: Path, small_disk: Path
) -> None:
    push(tiny_bundle, NAME)
    hub.asked.clear()
    with pytest.raises(HubError, match="the disk has only"):
        pull(NAME, small_disk / "bundle")
    assert list(small_disk.iterdir()) == []
    assert not [asked for asked in hub.asked if "onnx" in asked.path]


def test_a_bundle_whose_vectors_are_not_finite_is_never_published(
    hub: HubServer, tiny_bundle: Path, tmp_path: Path
) -> None:
    import onnx

    from cognate.bundle import fingerprint_of

    shutil.copytree(tiny_bundle, tmp_path / "bad")
    graph = onnx.load(tmp_path / "bad/onnx/model.onnx")
    for tensor in graph.graph.initializer:
        if "word_embeddings" in tensor.name:
            weights = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(weights, np.nan), tensor.name))
    onnx.save(graph, tmp_path / "bad/onnx/model.onnx")
    manifest = Bundle.open(tiny_bundle).manifest
    fields = {name: getattr(manifest, name) for name in set(BundleManifest.model_fields) - {"fingerprint"}}
    for name in ("artifact", "format_version", "created_at", "versions", "files"):
        del fields[name]
    fingerprint = fingerprint_of(tmp_path / "bad", max_length=manifest.max_length, prompts=manifest.prompts)
    BundleManifest.write(tmp_path / "bad", fingerprint=fingerprint, **fields)
    push(tmp_path / "bad", NAME)
    with pytest.raises(ArtifactError, match="numbers that are not finite"):
        pull(NAME, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


# What the hub refuses: one sentence, and no token in it.


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "HF_TOKEN is not valid"),
        (403, "HF_TOKEN may not do this"),
        (500, "answered 500; try again later"),
    ],
)
def test_a_refusal_is_one_sentence(
    status: int, message: str, hub: HubServer, tiny_bundle: Path, tmp_path: Path
) -> None:
    hub.status = status
    for action in (lambda: push(tiny_bundle, NAME), lambda: pull(NAME, tmp_path / "bundle")):
        with pytest.raises(HubError, match=message) as raised:
            action()
        assert "\n" not in str(raised.value)
        assert TOKEN not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_one_sentence(
    hub: HubServer, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match="there is no repository org/none at http://127.0.0.1"):
        pull("org/none", tmp_path / "bundle")
    for name in ("none", "a/b/c", "../x", "org/na me", "org/--x", ""):
        for action in (
            lambda name=name: push(tiny_bundle, name),
            lambda name=name: pull(name, tmp_path / "b"),
        ):
            with pytest.raises(HubError, match="ORG/NAME"):
                action()
    with pytest.raises(ArtifactError, match="does not exist"):
        push(tmp_path / "none", NAME)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="set HF_TOKEN"):
        push(tiny_bundle, NAME)
    assert NAME not in hub.repositories


def test_a_hub_that_cannot_be_reached_or_is_none_is_one_sentence(
    hub: HubServer, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, "http://user:password@127.0.0.1:1")
    for action in (lambda: push(tiny_bundle, NAME), lambda: pull(NAME, tmp_path / "bundle")):
        with pytest.raises(HubError, match="http://127.0.0.1:1 cannot be reached") as raised:
            action()
        assert "password" not in str(raised.value)
    use(monkeypatch, hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reset_sessions()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        pull(NAME, tmp_path / "bundle")
