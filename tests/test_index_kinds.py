"""Kinds of index: what they find, what they say of themselves, and what is refused."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from cognate import index_kinds
from cognate.bundle import Bundle
from cognate.errors import ArtifactError, CognateError
from cognate.exact import exact_top_k
from cognate.index import APPROXIMATE, LOOKUP, VECTORS, Index, IndexManifest, IndexWriter
from cognate.index_kinds import Layout
from cognate.index_tuning import TradeoffPoint, choose
from cognate.record_file import OFFSETS, RECORDS
from cognate.records import Accuracy, Record

COUNT, DIMENSION = 3000, 32

LAYOUTS = {
    "hnsw": Layout("hnsw"),
    "hnsw int8": Layout("hnsw", "int8"),
    "ivf_flat": Layout("ivf_flat"),
    "ivf_flat fp16": Layout("ivf_flat", "fp16"),
    "ivf_pq": Layout("ivf_pq"),
    "ivf_fastscan": Layout("ivf_fastscan"),
    "ivf_fastscan, linked lists": Layout("ivf_fastscan"),
    "flat fp16": Layout("flat", "fp16"),
    "flat int8": Layout("flat", "int8"),
    "factory": Layout(factory="RR32,IVF16,PQ8x4fs"),
}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def clustered(count: int, seed: int) -> np.ndarray:
    """Unit vectors around common centres, as those of texts are."""
    centres = np.random.default_rng(0).standard_normal((60, DIMENSION))
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(0, 60, count)] + random.standard_normal((count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS_OF_RECORDS = clustered(COUNT, 1)
QUERIES = clustered(100, 2)


def build(folder: Path, layout: Layout, bundle: Bundle, vectors: np.ndarray) -> IndexManifest:
    folder.mkdir()
    with IndexWriter(folder, vectors.shape[1], layout) as writer:
        writer.add([Record(f"text {row}") for row in range(len(vectors))], vectors)
        return writer.finish(bundle)


@pytest.fixture(scope="module", params=LAYOUTS)
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bundle: Bundle
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kinds") / "index"
    with pytest.MonkeyPatch.context() as patch:
        if "linked lists" in request.param:
            # Fewer lists are compared with one by one.
            patch.setattr(index_kinds, "GRAPH_LISTS", 16)
            patch.setattr(index_kinds, "GRAPH_SHARE", 1)
        build(folder, LAYOUTS[request.param], bundle, VECTORS_OF_RECORDS)
        yield folder


def recall(index: Index, accuracy: Accuracy, top_k: int = 10, at_once: int = len(QUERIES)) -> float:
    expected, _ = exact_top_k(QUERIES, VECTORS_OF_RECORDS, top_k)
    parts = np.split(QUERIES, len(QUERIES) // at_once)
    found = [index.search_rows(part, top_k, accuracy=accuracy) for part in parts]
    scores, rows = (np.concatenate(part) for part in zip(*found, strict=True))
    # Whatever finds the candidates, the scores are those of the full vectors.
    np.testing.assert_allclose(scores, np.take_along_axis(QUERIES @ VECTORS_OF_RECORDS.T, rows, 1), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(found)) == top_k for found in rows.tolist())
    return float((scores >= expected[:, -1:] - 1e-5).mean())


def test_searches_have_the_recall_that_they_promise_on_queries_that_are_no_records(built: Path) -> None:
    index = Index(built, device="cpu")
    for at_once in (1, 100):
        assert recall(index, "exact", at_once=at_once) == 1
        assert recall(index, "balanced", at_once=at_once) >= 0.97
        assert recall(index, "fast", at_once=at_once) >= 0.85
        assert recall(index, "balanced", top_k=50, at_once=at_once) >= 0.9


def test_the_manifest_has_what_was_measured_for_each_choice(built: Path) -> None:
    manifest = IndexManifest.read(built)
    exact, *tried = manifest.tradeoff
    assert (exact.parameters, exact.recall_at_10) == (None, 1)
    by_parameters = {point.parameters: point for point in tried}
    balanced = by_parameters[manifest.search["balanced"]]
    assert manifest.recall_at_10 == balanced.recall_at_10 >= manifest.recall_target == 0.99
    assert by_parameters[manifest.search["fast"]].recall_at_10 >= 0.9
    assert all(point.queries_per_second > 0 and point.bytes_per_record > 0 for point in tried)
    reached = [point.queries_per_second for point in tried if point.recall_at_10 >= 0.99]
    assert balanced.queries_per_second == max(reached)


def test_low_precision_takes_less_than_the_full_vectors(tmp_path: Path, bundle: Bundle) -> None:
    sizes = {}
    for name in ("flat int8", "flat fp16"):
        point = build(tmp_path / name, LAYOUTS[name], bundle, VECTORS_OF_RECORDS).tradeoff[-1]
        sizes[name] = point.bytes_per_record / (4 * DIMENSION)
    assert sizes["flat int8"] < 0.3
    assert sizes["flat fp16"] < 0.6


def test_a_graph_over_full_vectors_does_not_hold_them_twice(tmp_path: Path, bundle: Bundle) -> None:
    build(tmp_path / "index", Layout("hnsw"), bundle, VECTORS_OF_RECORDS)
    assert (tmp_path / "index" / APPROXIMATE).stat().st_size < 300 * COUNT
    assert (tmp_path / "index" / VECTORS).stat().st_size < 4 * DIMENSION * COUNT + 1000


def test_many_lists_are_written_with_a_graph_of_their_centroids(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizers = []
    for folder in ("few", "many"):
        build(tmp_path / folder, Layout("ivf_fastscan"), bundle, VECTORS_OF_RECORDS)
        lists = faiss.read_index(str(tmp_path / folder / APPROXIMATE))
        quantizers.append(type(faiss.downcast_index(faiss.downcast_index(lists).quantizer)))
        monkeypatch.setattr(index_kinds, "GRAPH_LISTS", 16)
    assert quantizers == [faiss.IndexFlatIP, faiss.IndexHNSWFlat]


def test_every_record_is_found_however_many_are_asked_for(built: Path) -> None:
    index = Index(built, device="cpu")
    for top_k in (COUNT // 12, COUNT, COUNT + 5):
        for accuracy in ("fast", "balanced", "exact"):
            _, rows = index.search_rows(QUERIES[:3], top_k, accuracy=accuracy)  # type: ignore[arg-type]
            assert rows.shape == (3, min(top_k, COUNT))
            assert rows.min() >= 0


def test_an_unknown_accuracy_is_refused(built: Path) -> None:
    with pytest.raises(CognateError, match="no accuracy 'perfect'; choose one of fast, balanced, exact"):
        Index(built, device="cpu").search(QUERIES, accuracy="perfect")  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_index_is_refused(built: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "index"
    shutil.copytree(built, copy)
    if damage == "missing":
        (copy / APPROXIMATE).unlink()
    else:
        os.truncate(copy / APPROXIMATE, (copy / APPROXIMATE).stat().st_size - 1)
    with pytest.raises(ArtifactError, match=str(copy / APPROXIMATE)):
        Index(copy)


@pytest.mark.parametrize("kind", ["hnsw", "ivf_flat"])
def test_duplicates_and_zero_vectors_are_records_like_others(
    tmp_path: Path, bundle: Bundle, kind: index_kinds.Kind
) -> None:
    vectors = VECTORS_OF_RECORDS.copy()
    same = np.arange(100, 200)
    vectors[same] = vectors[7]
    vectors[[5, 6]] = 0
    build(tmp_path / "index", Layout(kind), bundle, vectors)
    index = Index(tmp_path / "index", device="cpu")
    scores, rows = index.search_rows(vectors[[7]], 10)
    assert set(rows[0].tolist()) <= {7, *same.tolist()}
    assert scores[0] == pytest.approx(1, abs=1e-5)
    # Everything is at a cosine of 0 from nothing.
    scores, rows = index.search_rows(np.zeros((1, DIMENSION), np.float32), 10)
    assert (scores == 0).all()
    assert rows.min() >= 0
    (every,) = index.search(QUERIES[:1], COUNT)
    assert {hit.id: hit.score for hit in every}["5"] == 0


def test_a_record_whose_vector_is_not_finite_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    vectors = VECTORS_OF_RECORDS[:20].copy()
    vectors[13, 3] = np.nan
    with pytest.raises(CognateError, match="the vector of record 14 has a component that is not finite"):
        build(tmp_path / "index", Layout(), bundle, vectors)


@pytest.mark.parametrize("count", [0, 1, 2, 11])
@pytest.mark.parametrize("kind", ["auto", "hnsw", "ivf_flat"])
def test_a_handful_of_records_makes_an_index_of_any_kind(
    tmp_path: Path, bundle: Bundle, count: int, kind: index_kinds.Kind
) -> None:
    build(tmp_path / "index", Layout(kind), bundle, VECTORS_OF_RECORDS[:count])
    _, rows = Index(tmp_path / "index", device="cpu").search_rows(VECTORS_OF_RECORDS[:count], 1)
    assert rows.ravel().tolist() == list(range(count))


def test_auto_keeps_small_ones_flat_and_gives_large_ones_a_graph_or_codes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    auto = Layout("auto")
    assert auto.resolve(1000, 384).kind == "flat"
    monkeypatch.setattr(index_kinds, "usable_memory", lambda: 16 * 2**30)
    assert auto.resolve(1_000_000, 384).kind == "ivf_fastscan"
    assert auto.resolve(1_000_000, 384).factory_string(1_000_000, 384) == "IVF4000,PQ96x4fs"
    assert Layout("auto", "int8").resolve(1_000_000, 384).kind == "hnsw"
    assert auto.resolve(200_000_000, 384).kind == "ivf_pq"
    assert auto.resolve(200_000_000, 384).factory_string(200_000_000, 384) == "IVF56569,PQ96np"


def test_auto_stays_exact_where_nothing_reaches_the_recall(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_kinds, "FLAT_BYTES", 1000)
    found = build(tmp_path / "found", Layout("auto"), bundle, VECTORS_OF_RECORDS)
    assert (found.kind, found.parameters) == ("ivf_fastscan", {"factory": "IVF76,PQ8x4fs"})
    # Too few candidates to have the nearest among them.
    monkeypatch.setitem(index_kinds.RERANKS, "codes", (1,))
    missed = build(tmp_path / "missed", Layout("auto", recall=1), bundle, VECTORS_OF_RECORDS)
    assert (missed.kind, missed.recall_at_10, missed.search) == ("flat", 1, {})
    assert len(missed.tradeoff) > 1
    assert sorted(missed.files) == [VECTORS, LOOKUP, RECORDS, OFFSETS]


def test_balanced_is_the_quickest_that_reaches_the_recall_or_else_the_nearest_to_it() -> None:
    points = [
        TradeoffPoint(
            parameters=None if probes == 0 else index_kinds.SearchParameters(nprobe=probes),
            recall_at_10=found,
            queries_per_second=rate,
            bytes_per_record=1,
        )
        for probes, found, rate in [(0, 1.0, 10), (1, 0.8, 900), (2, 0.92, 700), (4, 0.95, 500)]
    ]
    for target, fast, balanced in [(0.95, 2, 4), (0.99, 2, 4), (0.7, 1, 1)]:
        chosen = choose(points, target)
        assert [point.parameters and point.parameters.nprobe for point in chosen] == [fast, balanced]


@pytest.mark.parametrize("dimension", [0, -1])
def test_vectors_without_components_are_refused(tmp_path: Path, dimension: int) -> None:
    with pytest.raises(
        CognateError, match=f"the vectors have {dimension} components; an index needs at least"
    ):
        IndexWriter(tmp_path, dimension)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout("tree"), "no kind of index 'tree'; choose one of auto, flat, hnsw"),  # type: ignore[arg-type]
        (Layout("hnsw", "int4"), "no storage 'int4'"),  # type: ignore[arg-type]
        (Layout("ivf_pq", "fp16"), "ivf_pq has its own storage"),
        (Layout("ivf_fastscan", "int8"), "ivf_fastscan has its own storage"),
        (Layout("hnsw", factory="Flat"), "without them"),
        (Layout(factory="IVF,nonsense"), "from the factory string 'IVF,nonsense'"),
        (Layout(factory="PQ7"), "from the factory string 'PQ7'"),
        (Layout(recall=0), "the recall asked for is 0"),
        (Layout(recall=float("nan")), "the recall asked for is nan"),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_work(
    tmp_path: Path, layout: Layout, message: str
) -> None:
    with pytest.raises(CognateError, match=message):
        IndexWriter(tmp_path, DIMENSION, layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout("ivf_pq"), "ivf_pq is learnt from at least 256 records, and there are 100"),
        (Layout(factory="IVF200,Flat"), "cannot build 'IVF200,Flat' from 100 records"),
        (Layout(factory="IDMap,Flat"), "cannot build 'IDMap,Flat' from 100 records"),
    ],
)
def test_too_few_records_for_a_kind_are_told(
    tmp_path: Path, bundle: Bundle, layout: Layout, message: str
) -> None:
    with pytest.raises(CognateError, match=message):
        build(tmp_path / "index", layout, bundle, VECTORS_OF_RECORDS[:100])


@pytest.mark.parametrize(
    ("kind", "codes"), [("ivf_pq", {384: 96, 7: 1, 30: 6}), ("ivf_fastscan", {384: 96, 7: 1, 30: 6})]
)
def test_codes_divide_the_dimension(kind: index_kinds.Kind, codes: dict[int, int]) -> None:
    for dimension, wanted in codes.items():
        assert f",PQ{wanted}" in (Layout(kind).factory_string(10_000, dimension) or "")


@pytest.mark.parametrize("kind", ["ivf_pq", "ivf_fastscan"])
def test_codes_of_vectors_as_long_as_a_models_find_what_they_promise(
    tmp_path: Path, bundle: Bundle, kind: index_kinds.Kind
) -> None:
    random = np.random.default_rng(3)
    centres = random.standard_normal((40, 384))
    vectors = centres[random.integers(0, 40, 2100)] + random.standard_normal((2100, 384))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    manifest = build(tmp_path / "index", Layout(kind), bundle, vectors[:2000])
    index = Index(tmp_path / "index", device="cpu")
    expected, _ = exact_top_k(vectors[2000:], vectors[:2000], 10)
    scores, _ = index.search_rows(vectors[2000:], 10)
    assert (manifest.dimension, manifest.kind, manifest.storage) == (384, kind, "codes")
    assert float((scores >= expected[:, -1:] - 1e-5).mean()) >= 0.97
