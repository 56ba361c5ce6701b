"""``cognate bundle …`` and ``cognate import``: what they print, and their one line for what went wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from cognate.bundle import Bundle, BundleManifest
from cognate.encoder import Encoder
from cognate.records import read_records
from tests.conftest import SAMPLE
from tests.hub_server import TOKEN, HubServer


@pytest.fixture(scope="session")
def other_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with some weights of half precision and a length of 60."""
    folder = tmp_path_factory.mktemp("bundles") / "other"
    shutil.copytree(tiny_bundle, folder)
    graph = onnx.load(folder / "onnx/model.onnx")
    table = next(each for each in graph.graph.initializer if "word_embeddings" in each.name)
    half = numpy_helper.to_array(table).astype("float16")
    name = table.name
    table.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
    cast = onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)
    graph.graph.node.insert(0, cast)
    onnx.save(graph, folder / "onnx/model.onnx")
    write_manifest(folder, tiny_bundle, max_length=60)
    return folder


def write_manifest(folder: Path, like: Path, **changes: object) -> None:
    from cognate.bundle import fingerprint_of

    manifest = Bundle.open(like).manifest
    own = set(BundleManifest.model_fields) - set(BundleManifest.__base__.model_fields)
    fields = {name: getattr(manifest, name) for name in own} | changes
    if "fingerprint" not in changes:
        fields["fingerprint"] = fingerprint_of(
            folder, max_length=fields["max_length"], prompts=manifest.prompts
        )
    BundleManifest.write(folder, **fields)


def test_info_says_what_a_bundle_is(tiny_bundle: Path, cognate: Callable) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    shown = cognate("bundle", "info", tiny_bundle)
    assert shown.code == 0
    for part in (manifest.fingerprint, "mean", "onnx/model.onnx", "min_cosine"):
        assert part in shown.out
    document = json.loads(cognate("bundle", "info", tiny_bundle, "--json").out)
    assert document["fingerprint"] == manifest.fingerprint
    assert document["bytes"] == sum(digest.size for digest in manifest.files.values())


def test_verify_of_a_good_bundle(tiny_bundle: Path, tiny_model: Path, cognate: Callable) -> None:
    shown = cognate("bundle", "verify", tiny_bundle, "--against", tiny_model)
    assert shown.code == 0, shown.err
    assert Bundle.open(tiny_bundle).manifest.fingerprint in shown.out
    assert "smallest cosine" in shown.out
    document = json.loads(cognate("bundle", "verify", tiny_bundle, "--against", tiny_model, "--json").out)
    assert document["parity"]["min_cosine"] >= 0.9999
    assert document["files"] == len(Bundle.open(tiny_bundle).manifest.files)
    assert json.loads(cognate("bundle", "verify", tiny_bundle, "--json").out)["parity"] is None


def test_verify_finds_what_is_wrong(
    tiny_bundle: Path, tiny_model: Path, tmp_path: Path, cognate: Callable
) -> None:
    def changed(name: str) -> Path:
        return Path(shutil.copytree(tiny_bundle, tmp_path / name))

    (changed("truncated") / "tokenizer.json").write_text("{}")
    (changed("extra") / "onnx/old.onnx_data").write_text("weights of another")
    write_manifest(changed("fingerprint"), tiny_bundle, fingerprint="0" * 64)
    write_manifest(changed("prompts"), tiny_bundle, prompts={"query": "", "passage": "x"}, max_length=40)
    graph = changed("length") / "onnx/model.onnx"
    model = onnx.load(graph)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
    for node in model.graph.node:
        node.output[:] = ["short" if name == "sentence_embedding" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Mul", ["short", "two"], ["sentence_embedding"]))
    onnx.save(model, graph)
    write_manifest(tmp_path / "length", tiny_bundle)
    for name, message in (
        ("truncated", "tokenizer.json has 2 bytes where the manifest says"),
        ("extra", "has the fingerprint"),
        ("fingerprint", "has the fingerprint"),
        ("prompts", "has the fingerprint"),
        ("length", "vectors whose length is off one by 1"),
        ("none", "does not exist"),
    ):
        assert message in cognate("bundle", "verify", tmp_path / name).check_one_line_error(), name
    for model_name, message in (("minilm", "384 dimensions"), ("no-such-model", "no model named")):
        line = cognate("bundle", "verify", tiny_bundle, "--against", model_name).check_one_line_error()
        assert message in line


def test_verify_tells_a_model_with_other_weights(
    tiny_bundle: Path, tiny_model: Path, tmp_path: Path, cognate: Callable
) -> None:
    import safetensors.numpy

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = safetensors.numpy.load_file(model / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"] *= -1
    safetensors.numpy.save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    line = cognate("bundle", "verify", tiny_bundle, "--against", model).check_one_line_error()
    assert "the smallest cosine between their vectors is" in line


def test_diff_says_what_differs(tiny_bundle: Path, other_bundle: Path, cognate: Callable) -> None:
    shown = cognate("bundle", "diff", tiny_bundle, other_bundle)
    assert shown.code == 0, shown.err
    for part in ("max_length", "onnx/model.onnx", "Cast", "float16 (", "ten nearest"):
        assert part in shown.out
    document = json.loads(cognate("bundle", "diff", tiny_bundle, other_bundle, "--json").out)
    assert not document["same_vectors"]
    assert document["settings"] == {"max_length": [64, 60]}
    assert document["graph"]["opset"] is None
    before, after = document["graph"]["nodes"]["Cast"]
    assert after == (before or 0) + 1
    kinds = document["graph"]["initializers"]
    table = next(name for name in kinds if name.endswith("word_embeddings.weight"))
    assert kinds[table][0].startswith("float32 (")
    assert kinds[f"{table}.half"] == [None, kinds[table][0].replace("float32", "float16")]
    assert document["tokenizer"] == {}
    assert document["vectors"] == pytest.approx(compared_by_hand(tiny_bundle, other_bundle), abs=1e-5)
    assert document["vectors"]["min_cosine"] < 0.9999


def compared_by_hand(*bundles: Path) -> dict[str, float]:
    queries, passages = (
        [record.text for record in read_records(SAMPLE / name)] for name in ("queries.jsonl", "index.jsonl")
    )
    encoders = [Encoder(bundle, device="cpu") for bundle in bundles]
    asked = [encoder.encode(queries, "query") for encoder in encoders]
    searched = [encoder.encode(passages) for encoder in encoders]
    nearest = [
        np.argsort(-(a @ s.T), axis=1, kind="stable")[:, :10] for a, s in zip(asked, searched, strict=True)
    ]
    shared = [len({*left} & {*right}) / 10 for left, right in zip(*nearest, strict=True)]
    cosines = (np.concatenate([asked[0], searched[0]]) * np.concatenate([asked[1], searched[1]])).sum(axis=1)
    return {
        "texts": len(queries) + len(passages),
        "min_cosine": cosines.min(),
        "mean_cosine": cosines.mean(),
        "top_10_overlap": np.mean(shared),
    }


def test_diff_of_a_bundle_with_itself_finds_nothing(tiny_bundle: Path, cognate: Callable) -> None:
    document = json.loads(cognate("bundle", "diff", tiny_bundle, tiny_bundle, "--json").out)
    assert document["same_vectors"]
    for part in ("settings", "files", "tokenizer"):
        assert document[part] == {}
    assert document["graph"] == {"opset": None, "nodes": {}, "initializers": {}, "changed_weights": []}
    assert document["vectors"]["top_10_overlap"] == 1
    shown = cognate("bundle", "diff", tiny_bundle, tiny_bundle)
    assert "same fingerprint" in shown.out


def test_diff_of_bundles_of_other_dimensions_compares_what_it_can(
    tiny_bundle: Path, minilm_bundle: Path, cognate: Callable
) -> None:
    document = json.loads(cognate("bundle", "diff", tiny_bundle, minilm_bundle, "--json").out)
    assert document["settings"]["dimension"] == [32, 384]
    assert document["vectors"]["min_cosine"] is None
    assert 0 < document["vectors"]["top_10_overlap"] < 1
    assert "30522 tokens" in document["tokenizer"]["model"][1]
    shown = cognate("bundle", "diff", tiny_bundle, minilm_bundle)
    assert "cannot be compared" in shown.out
    assert "which --json tells" in shown.out


def test_diff_of_what_is_no_bundle_is_one_line(tiny_bundle: Path, tmp_path: Path, cognate: Callable) -> None:
    for pair in ((tiny_bundle, tmp_path), (tmp_path / "none", tiny_bundle)):
        cognate("bundle", "diff", *pair).check_one_line_error()


def test_import_of_a_published_model(tiny_bundle: Path, tmp_path: Path, cognate: Callable) -> None:
    # A bundle without its manifest is a sentence-transformers folder with an ONNX graph.
    source = tmp_path / "model"
    shutil.copytree(tiny_bundle, source)
    (source / "manifest.json").unlink()
    shown = cognate("import", source, "--out", tmp_path / "bundle")
    assert shown.code == 0, shown.err
    assert "a bundle of 32 dimensions" in shown.out
    document = json.loads(cognate("import", source, "--out", tmp_path / "again", "--json").out)
    assert document["pooling"] == "mean"
    assert document["parity"]["min_cosine"] >= 0.9999
    difference = json.loads(cognate("bundle", "diff", tiny_bundle, tmp_path / "bundle", "--json").out)
    assert difference["vectors"]["min_cosine"] >= 0.9999
    line = cognate("import", source, "--out", tmp_path / "bundle").check_one_line_error()
    assert "exists" in line
    line = cognate("import", source, "--out", tmp_path / "other", "--pooling", "cls").check_one_line_error()
    assert "leave --pooling out" in line
    assert not (tmp_path / "other").exists()


def test_push_and_pull_as_a_user_runs_them(tiny_bundle: Path, tiny_model: Path, tmp_path: Path) -> None:
    with HubServer() as hub:

        def run(*arguments: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
            environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
            return subprocess.run(
                [sys.executable, "-m", "cognate", "--debug", *map(str, arguments)],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )

        pushed = run("bundle", "push", tiny_bundle, "org/tiny")
        exported = run("export", tiny_model, "--out", tmp_path / "exported", "--push", "org/exported")
        pulled_again = run("bundle", "pull", "org/exported", "--out", tmp_path / "again")
        pulled = run("bundle", "pull", "org/tiny", "--out", tmp_path / "bundle", "--json")
        refused = run("bundle", "push", tiny_bundle, "org/tiny", token="hf_wrongWrongWrong")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.startswith(f"org/tiny: {hub.url}/org/tiny/commit/")
    assert pulled.returncode == 0, pulled.stderr
    assert json.loads(pulled.stdout)["fingerprint"] == Bundle.open(tmp_path / "bundle").manifest.fingerprint
    assert exported.returncode == pulled_again.returncode == 0, exported.stderr + pulled_again.stderr
    assert f"org/exported: {hub.url}/org/exported/commit/" in exported.stdout
    assert refused.returncode == 1
    assert "error: org/tiny could not be pushed to" in refused.stderr
    assert "HF_TOKEN is not valid" in refused.stderr
    for finished in (pushed, pulled, exported, refused):
        assert TOKEN not in finished.stdout + finished.stderr
        assert "hf_wrong" not in finished.stdout + finished.stderr


def test_a_name_that_is_none_is_one_line(
    tiny_bundle: Path, tiny_model: Path, tmp_path: Path, cognate: Callable
) -> None:
    for command in (
        ("export", tiny_model, "--out", tmp_path / "bundle", "--push", "nonsense"),
        ("bundle", "push", tiny_bundle, "nonsense"),
        ("bundle", "pull", "nonsense", "--out", tmp_path / "bundle"),
    ):
        assert "ORG/NAME" in cognate(*command).check_one_line_error()
    assert not (tmp_path / "bundle").exists()


def test_an_int8_export_says_what_it_costs(tiny_model: Path, tmp_path: Path, cognate: Callable) -> None:
    shown = cognate("export", tiny_model, "--out", tmp_path / "bundle", "--precision", "int8")
    assert shown.code == 0, shown.err
    assert "min_cosine" in shown.out
    assert "int8, dynamic" in shown.out
    assert "beyond" not in shown.out
    line = cognate(
        "export", tiny_model, "--out", tmp_path / "other", "--allow-loss", "beauty"
    ).check_one_line_error()
    assert "beauty" in line
    assert not (tmp_path / "other").exists()
