"""What can be exported: poolings and encoder families, each against sentence-transformers' own vectors."""

import json
import shutil
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

import exporter
from cognate.encoder import Encoder
from cognate.errors import ModelError
from tests.families import FAMILIES, LENGTH, make

TEXTS = ["how do i reset the password", "door", "", "what is the printer " * 40, "🙂 怎样", "Learn!"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_the_vectors_of_sentence_transformers(family: str, tmp_path: Path) -> None:
    transformer = Transformer(str(make(family, tmp_path / "plain")), max_seq_length=LENGTH)
    model = SentenceTransformer(modules=[transformer, Pooling(32), Normalize()], device="cpu")
    model.save(str(tmp_path / "model"), create_model_card=False)
    bundle = exporter.export(tmp_path / "model", tmp_path / "bundle")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    ours = Encoder(bundle).encode(TEXTS)
    assert (theirs * ours).sum(axis=1).min() >= 0.9999
    # Vectors that are all alike would be equal whatever the graph did.
    assert (theirs @ theirs.T).min() < 0.99


@pytest.mark.parametrize(
    "pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]
)
def test_every_pooling_with_dense_layers_and_prompts(pooling: str, tiny_model: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(
        modules=[Transformer(str(tiny_model)), Pooling(32, pooling_mode=pooling), Dense(32, 8)],  # type: ignore[arg-type]
        device="cpu",
        prompts={"query": "find: ", "document": "text: "},
    )
    model.save(str(tmp_path / "model"), create_model_card=False)
    bundle = exporter.export(tmp_path / "model", tmp_path / "bundle")
    assert (bundle.manifest.dimension, bundle.manifest.pooling) == (8, pooling)
    for input_type, prompt in (("query", "find: "), ("passage", "text: ")):
        theirs = model.encode(TEXTS, prompt=prompt, normalize_embeddings=True)
        ours = Encoder(bundle).encode(TEXTS, input_type)  # type: ignore[arg-type]
        assert (theirs * ours).sum(axis=1).min() >= 0.9999


def test_a_model_that_does_not_say_how_it_pools_needs_to_be_told(tmp_path: Path) -> None:
    plain = make("bert", tmp_path / "plain")
    with pytest.raises(ModelError, match="does not say how its token vectors are pooled; give --pooling"):
        exporter.export(plain, tmp_path / "bundle")
    with pytest.raises(ModelError, match="no pooling 'middle'"):
        exporter.export(plain, tmp_path / "bundle", pooling="middle")
    bundle = exporter.export(plain, tmp_path / "bundle", pooling="cls")
    assert bundle.manifest.pooling == "cls"
    model = SentenceTransformer(modules=[Transformer(str(plain)), Pooling(32, "cls")], device="cpu")
    theirs = model.encode(TEXTS, normalize_embeddings=True)
    assert (theirs * Encoder(bundle).encode(TEXTS)).sum(axis=1).min() >= 0.9999


def test_a_pooling_is_not_given_to_a_model_that_has_one(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leave --pooling out"):
        exporter.export(tiny_model, tmp_path / "bundle", pooling="cls")


def test_a_model_that_needs_code_of_its_own_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    config = tmp_path / "model/config.json"
    settings = json.loads(config.read_text()) | {
        "model_type": "nomic_bert",
        "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"},
    }
    config.write_text(json.dumps(settings))
    (tmp_path / "model/code.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        exporter.export(tmp_path / "model", tmp_path / "bundle")


def test_a_tokenizer_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    transformer = Transformer(str(tiny_model))
    transformer.tokenizer.add_tokens([f"word{number}" for number in range(50)])
    model = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    model.save(str(tmp_path / "model"), create_model_card=False)
    with pytest.raises(ModelError, match="the tokenizer belongs to another model"):
        exporter.export(tmp_path / "model", tmp_path / "bundle")
