"""``exporter.export``: a bundle with torch's vectors, which other libraries open too, or nothing."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

import exporter
from cognate.bundle import Bundle
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, ModelError
from exporter.parity import LIMITS

TEXTS = ["how do i reset the password", "door", "", "what is the printer " * 40, "🙂 怎样"]


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left * right).sum(axis=1)


def test_the_bundle_gives_torchs_vectors_and_says_how_near_they_are(
    tiny_model: Path, tiny_bundle: Path
) -> None:
    torch_vectors = SentenceTransformer(str(tiny_model), device="cpu").encode(TEXTS)
    assert cosines(torch_vectors, Encoder(tiny_bundle).encode(TEXTS)).min() >= 0.9999
    manifest = Bundle.open(tiny_bundle).manifest
    assert manifest.parity.min_cosine >= 0.9999
    assert manifest.parity.texts > 80
    assert (manifest.dimension, manifest.max_length, manifest.pooling) == (32, 64, "mean")


def test_sentence_transformers_opens_the_bundle(tiny_bundle: Path) -> None:
    opened = SentenceTransformer(str(tiny_bundle), backend="onnx", device="cpu")
    assert cosines(opened.encode(TEXTS), Encoder(tiny_bundle).encode(TEXTS)).min() >= 0.9999


def test_the_graph_pools_and_normalises(tiny_bundle: Path) -> None:
    session = onnxruntime.InferenceSession(str(Bundle.open(tiny_bundle).graph))
    assert {output.name for output in session.get_outputs()} == {"sentence_embedding", "last_hidden_state"}
    ids = np.array([[2, 10, 11, 3, 0, 0]])
    embedding, hidden = session.run(
        ["sentence_embedding", "last_hidden_state"],
        {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 1, 0, 0]])},
    )
    mean = hidden[0, :4].mean(axis=0)
    assert embedding[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_no_weights_but_the_graph_are_in_the_bundle(tiny_bundle: Path) -> None:
    names = {path.name for path in tiny_bundle.rglob("*")}
    assert "model.onnx" in names
    assert not {name for name in names if name.endswith((".safetensors", ".bin", ".py", ".pkl"))}


def test_two_exports_of_one_model_have_one_fingerprint(
    tiny_model: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    again = exporter.export(tiny_model, tmp_path / "again")
    assert again.manifest.fingerprint == Bundle.open(tiny_bundle).manifest.fingerprint


@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "lasttoken"])
def test_a_model_without_normalisation_gets_one_whatever_its_pooling(
    pooling: str, tiny_model: Path, tmp_path: Path
) -> None:
    transformer = Transformer(str(tiny_model))
    model = SentenceTransformer(
        modules=[transformer, Pooling(32, pooling_mode=pooling), Dense(32, 8)],
        device="cpu",
        prompts={"query": "find: ", "document": "text: "},
    )
    model.save(str(tmp_path / "model"), create_model_card=False)
    bundle = exporter.export(tmp_path / "model", tmp_path / "bundle")
    assert (bundle.manifest.dimension, bundle.manifest.pooling) == (8, pooling)
    encoder = Encoder(bundle)
    for input_type, prompt in (("query", "find: "), ("passage", "text: ")):
        expected = model.encode(TEXTS, prompt=prompt, normalize_embeddings=True)
        assert cosines(expected, encoder.encode(TEXTS, input_type)).min() >= 0.9999


def test_a_bundle_below_the_parity_gate_is_not_published(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS["fp32"], "min_cosine", 1.1)
    with pytest.raises(ModelError, match="not exported: the smallest cosine"):
        exporter.export(tiny_model, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_replaced_only_with_force(tiny_model: Path, tmp_path: Path) -> None:
    exporter.export(tiny_model, tmp_path / "bundle")
    with pytest.raises(ArtifactError, match="exists.*--force"):
        exporter.export(tiny_model, tmp_path / "bundle")
    exporter.export(tiny_model, tmp_path / "bundle", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_no_model_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for source, message in (
        ("no-such-model", "no model named 'no-such-model'.*minilm"),
        (tmp_path / "empty", "no modules.json"),
        (tmp_path / "file", "is a file"),
        (tiny_bundle, "is a bundle; give a checkpoint"),
    ):
        with pytest.raises(ModelError, match=message):
            exporter.export(source, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_model_with_pickled_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    import safetensors.torch
    import torch

    shutil.copytree(tiny_model, tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    torch.save(safetensors.torch.load_file(weights), tmp_path / "model/pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        exporter.export(tmp_path / "model", tmp_path / "bundle")
