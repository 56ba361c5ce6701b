"""Indexes on GPUs. Here the same index does on the CPU what it does there, but for tests marked gpu."""

from pathlib import Path

import faiss
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from cognate import gpu_index
from cognate.bundle import Bundle
from cognate.devices import IndexGpus
from cognate.encoder import Encoder
from cognate.errors import CognateError
from cognate.gpu_index import (
    MAX_K,
    WORKSPACE,
    GpuIndex,
    NotOnGpuError,
    check_memory,
    gpu_bytes,
    gpu_count,
    to_gpus,
)
from cognate.index import APPROXIMATE, Index, IndexWriter
from cognate.index_kinds import Approximate, Layout, build_approximate, write_approximate
from cognate.records import Record

DIMENSION = 32
COUNT = 2500
GIB = 1024**3

without_gpu = pytest.mark.skipif(not gpu_count(), reason="this faiss sees no GPU")

Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    made = np.random.default_rng(0).standard_normal((COUNT, DIMENSION)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def flat(vectors: Vectors) -> faiss.Index:
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(vectors)
    return index


def cagra_on_the_cpu(vectors: Vectors) -> faiss.Index:
    """What ``build_cagra`` returns, its graph linked on the CPU instead."""
    graph = faiss.IndexHNSWCagra(DIMENSION, 16, faiss.METRIC_INNER_PRODUCT)  # type: ignore[attr-defined]
    graph.add(vectors)
    graph.base_level_only = True
    return graph


def write(folder: Path, vectors: Vectors, bundle: Path, layout: Layout) -> Path:
    folder.mkdir()
    with IndexWriter(folder, DIMENSION, layout) as writer:
        writer.add([Record(str(row), None, str(row)) for row in range(len(vectors))], vectors)
        writer.finish(Bundle.open(bundle))
    return folder


# What can be there, and whether it fits


@pytest.mark.parametrize(
    ("factory", "each"),
    [
        ("Flat", 4 * DIMENSION),
        ("SQfp16", 2 * DIMENSION),
        ("IVF8,Flat", 4 * DIMENSION + 8),
        ("IVF8,SQ8", DIMENSION + 8),
        ("IVF8,PQ8np", 16),
        ("PCA16,IVF8,Flat", 4 * 16 + 8),
    ],
)
def test_the_memory_of_an_index_is_that_of_its_codes_and_ids(
    factory: str, each: int, vectors: Vectors
) -> None:
    taken = gpu_bytes(build_approximate(factory, vectors)) - COUNT * each
    # And its lists, none of which is filled up by more than 31 vectors.
    assert 0 <= taken <= 8 * (4 * DIMENSION + 32 * 4 * DIMENSION)


def test_a_cagra_graph_takes_the_vectors_and_its_links(vectors: Vectors) -> None:
    assert gpu_bytes(cagra_on_the_cpu(vectors)) == COUNT * (4 * DIMENSION + 4 * 32)


@pytest.mark.parametrize("factory", ["HNSW16,Flat", "SQ8", "PQ8np"])
def test_a_kind_that_no_gpu_searches_is_refused_with_those_that_are(factory: str, vectors: Vectors) -> None:
    with pytest.raises(NotOnGpuError, match="build it with --kind cagra, ivf_flat or ivf_pq, or flat"):
        gpu_bytes(build_approximate(factory, vectors))


def test_an_index_that_fits_is_let_through(flat: faiss.Index) -> None:
    check_memory(flat, "one", [(WORKSPACE + gpu_bytes(flat), 8 * GIB)])
    check_memory(flat, "shards", [(WORKSPACE + gpu_bytes(flat) // 2, 8 * GIB)] * 2)


def test_one_that_does_not_fit_says_by_how_much_and_what_to_do(
    flat: faiss.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = (WORKSPACE + gpu_bytes(flat) - 1, 24_000_000_000)
    with pytest.raises(
        NotOnGpuError,
        match=r"takes 0\.0 GB on a GPU and 1\.6 GB to work in, and of the 24\.0 GB of GPU 0 1\.6 GB "
        "are free; "
        "build it with --kind ivf_pq or --storage fp16, or use --index-device cpu",
    ):
        check_memory(flat, "one", [memory])
    monkeypatch.setattr(gpu_index, "gpu_count", lambda: 4)
    with pytest.raises(NotOnGpuError, match=r"spread it with --index-gpus shards \(0\.0 GB on each\)"):
        check_memory(flat, "replicas", [(8 * GIB, 8 * GIB), memory])


@pytest.mark.skipif(gpu_count() > 0, reason="this faiss sees a GPU")
def test_without_a_gpu_the_device_is_refused_and_auto_takes_the_cpu(
    flat: faiss.Index, vectors: Vectors, tiny_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotOnGpuError, match=r"sees no GPU.* install cognate\[serve-gpu\]"):
        to_gpus(flat, "one")
    folder = write(tmp_path / "index", vectors[:20], tiny_bundle, Layout())
    with pytest.raises(
        CognateError, match=r"index device cuda was asked for, but .*index cannot be there: this faiss"
    ):
        Index(folder, device="cuda")
    assert Index(folder).device == "cpu"


@pytest.mark.skipif(hasattr(faiss, "GpuIndexCagra"), reason="this faiss has CAGRA")
def test_cagra_is_not_built_without_a_gpu_and_says_what_to_install() -> None:
    with pytest.raises(CognateError, match="kind cagra is built on a GPU, by faiss-gpu-cuvs, and this faiss"):
        Layout("cagra").check(DIMENSION)


# Searching, by the same calls as on a GPU


@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "IVF8,Flat", "IVF8,SQ8", "IVF8,PQ8np"])
def test_it_finds_what_the_cpu_finds_and_full_vectors_score(
    factory: str, vectors: Vectors, flat: faiss.Index
) -> None:
    approximate = Approximate(build_approximate(factory, vectors), flat)
    there = GpuIndex(approximate.index, full=flat if approximate.reranks else None)
    for parameters in next(approximate.points())[:3]:
        given = {name: value for name, value in parameters.model_dump().items() if name != "ef_search"}
        expected, _ = approximate.search(vectors[:50], 10, parameters)
        scores, rows = there.search(vectors[:50], 10, **given)
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        found = rows >= 0
        exact = np.einsum("qkd,qd->qk", vectors[rows], vectors[:50])
        np.testing.assert_allclose(scores[found], exact[found], atol=1e-6)


def test_lists_that_hold_fewer_than_asked_for_leave_rows_of_minus_one(vectors: Vectors) -> None:
    there = GpuIndex(build_approximate("IVF64,Flat", vectors))
    _, rows = there.search(vectors[:5], 1000, nprobe=1)
    assert (rows[:, 0] >= 0).all()
    assert (rows[:, -1] == -1).all()


def test_what_is_beyond_a_gpu_is_not_taken(flat: faiss.Index) -> None:
    there = GpuIndex(flat)
    assert there.takes(MAX_K)
    assert not there.takes(MAX_K + 1)
    assert not there.takes(MAX_K // 4 + 1, rerank=4)
    assert not there.takes(10, nprobe=MAX_K + 1)


def test_vectors_are_searched_with_where_the_device_left_them(flat: faiss.Index, vectors: Vectors) -> None:
    left = onnxruntime.OrtValue.ortvalue_from_numpy(vectors[:7])
    scores, rows = GpuIndex(flat).search(left, 5)
    expected = GpuIndex(flat).search(vectors[:7], 5)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(scores, expected[0])


@pytest.mark.parametrize("layout", [Layout(), Layout("ivf_flat"), Layout("ivf_flat", "int8")])
def test_an_index_answers_alike_wherever_it_is_searched(
    layout: Layout,
    vectors: Vectors,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write(tmp_path / "index", vectors, tiny_bundle, layout)
    here = Index(folder, device="cpu")
    # A copy on the CPU in the place of one on a GPU.
    monkeypatch.setattr("cognate.index.to_gpus", lambda index, gpus, full=None: GpuIndex(index, full=full))
    there = Index(folder, device="cuda")
    assert there.device == "cuda"
    left = onnxruntime.OrtValue.ortvalue_from_numpy(vectors[:20])
    for accuracy in ("fast", "balanced", "exact"):
        # The last two are more than a GPU takes, and more than there are.
        for top_k in (1, 10, 2049, 5000):
            expected = here.search(vectors[:20], top_k, accuracy=accuracy)
            assert there.search(vectors[:20], top_k, accuracy=accuracy) == expected
            assert there.search_on_device(left, top_k, accuracy=accuracy) == expected
            assert here.search_on_device(left, top_k, accuracy=accuracy) == expected
    there.close()
    with pytest.raises(CognateError, match="is closed"):
        there.search_on_device(left)


def test_a_batch_on_the_device_is_searched_for_as_its_texts_are(tiny_bundle: Path, tmp_path: Path) -> None:
    encoder = Encoder(tiny_bundle)
    texts = ["open the door", "reset the password", "what is a printer"]
    index = Index(write(tmp_path / "index", encoder.encode(texts), tiny_bundle, Layout()))
    batch = [text.ids for text in encoder.tokenize(texts[:2])]
    hits = index.search_on_device(encoder.forward_on_device(batch), 1)
    assert [found[0].id for found in hits] == ["0", "1"]


def test_a_search_on_the_device_is_checked_too(vectors: Vectors, tiny_bundle: Path, tmp_path: Path) -> None:
    index = Index(write(tmp_path / "index", vectors[:20], tiny_bundle, Layout()))
    with pytest.raises(CognateError, match=r"have shape \(3, 8\); the index needs \(queries, 32\)"):
        index.search_on_device(onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((3, 8), np.float32)))


def test_a_graph_of_a_gpu_is_written_without_its_vectors_and_searched_on_the_cpu(
    vectors: Vectors, flat: faiss.Index, tmp_path: Path
) -> None:
    path = tmp_path / APPROXIMATE
    write_approximate(cagra_on_the_cpu(vectors), path)
    assert path.stat().st_size < COUNT * 4 * DIMENSION * 2.5
    graph = Approximate(faiss.read_index(str(path)), flat)
    assert graph.borrows
    assert not graph.reranks
    *_, most = next(graph.points())
    _, rows = graph.search(vectors[:100], 10, most)
    _, expected = flat.search(vectors[:100], 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, expected, strict=True)]) > 0.95


# On a GPU


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize("gpus", ["one", "replicas", "shards"])
@pytest.mark.parametrize(
    "layout", [Layout(), Layout("ivf_flat"), Layout("ivf_flat", "int8"), Layout("ivf_pq")], ids=str
)
def test_a_gpu_finds_what_the_cpu_finds(
    layout: Layout, gpus: IndexGpus, vectors: Vectors, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "index", vectors, tiny_bundle, layout)
    there, here = Index(folder, device="cuda", gpus=gpus), Index(folder, device="cpu")
    for accuracy in ("fast", "balanced", "exact"):
        scores, _ = there.search_rows(vectors[:50], 10, accuracy=accuracy)
        expected, _ = here.search_rows(vectors[:50], 10, accuracy=accuracy)
        # The tables of a GPU's PQ are float16, and other candidates may come of it.
        assert (np.abs(scores - expected) < 1e-4).mean() > 0.95


@pytest.mark.gpu
@without_gpu
def test_fp16_on_a_gpu_is_scored_again_by_full_vectors(
    vectors: Vectors, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "index", vectors, tiny_bundle, Layout("flat", "fp16"))
    scores, rows = Index(folder, device="cuda").search_rows(vectors[:50], 10)
    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", vectors[rows], vectors[:50]), atol=1e-6)


@pytest.mark.gpu
@without_gpu
def test_vectors_go_from_the_encoder_to_the_index_on_the_gpu(tiny_bundle: Path, tmp_path: Path) -> None:
    encoder = Encoder(tiny_bundle, device="cuda")
    texts = ["open the door", "reset the password", "what is a printer"]
    index = Index(write(tmp_path / "index", encoder.encode(texts), tiny_bundle, Layout()), device="cuda")
    left = encoder.forward_on_device([text.ids for text in encoder.tokenize(texts)])
    assert left.device_name() == "cuda"
    assert [hits[0].id for hits in index.search_on_device(left, 1)] == ["0", "1", "2"]


@pytest.mark.gpu
@pytest.mark.skipif(not hasattr(faiss, "GpuIndexCagra"), reason="this faiss has no CAGRA")
def test_a_cagra_index_is_searched_on_the_gpu_and_on_the_cpu(
    vectors: Vectors, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "index", vectors, tiny_bundle, Layout("cagra"))
    expected, _ = Index(folder, device="cpu").search_rows(vectors[:50], 10, accuracy="exact")
    for device in ("cuda", "cpu"):
        scores, _ = Index(folder, device=device).search_rows(vectors[:50], 10)
        assert (np.abs(scores - expected) < 1e-4).mean() > 0.9
