"""Narrowed searches in an index: filters, records left out, a hit a label, pages."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cognate import index as index_module
from cognate import narrowing as narrowing_module
from cognate.artifact import publishing
from cognate.bundle import Bundle
from cognate.errors import CognateError
from cognate.exact import exact_top_k
from cognate.filters import parse
from cognate.index import Index, IndexWriter
from cognate.index_kinds import Layout
from cognate.narrowing import Narrowing
from cognate.records import Record
from tests.test_index_kinds import LAYOUTS, QUERIES, clustered

COUNT = 3000
VECTORS = clustered(COUNT, 1)
LABELS = [None if row % 10 == 0 else f"label {row % 7}" for row in range(COUNT)]
RECORDS = [
    Record(
        f"text {row}",
        LABELS[row],
        f"r{row}",
        {"lang": ["en", "de"][row % 2], "n": row, "author": {"name": f"a{row % 100}"}} if row % 4 else None,
    )
    for row in range(COUNT)
]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def build(
    folder: Path, bundle: Bundle, layout: Layout, vectors: np.ndarray, records: Sequence[Record]
) -> Index:
    with publishing(folder, "index") as partial, IndexWriter(partial, vectors.shape[1], layout) as writer:
        writer.add(records, vectors)
        writer.finish(bundle)
    return Index(folder, device="cpu")


@pytest.fixture(scope="module", params=["flat", *LAYOUTS])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Index:
    layout = LAYOUTS.get(request.param, Layout("flat"))
    return build(tmp_path_factory.mktemp("narrowing") / "index", bundle, layout, VECTORS, RECORDS)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Index:
    return build(tmp_path_factory.mktemp("narrowing") / "flat", bundle, Layout("flat"), VECTORS, RECORDS)


def rows(
    index: Index, narrowing: Narrowing, top_k: int = 10, queries: int = len(QUERIES), **options: object
) -> list[list[int]]:
    found = index.search(QUERIES[:queries], top_k, narrowing=narrowing, **options)  # type: ignore[arg-type]
    return [[int(hit.id[1:]) for hit in hits] for hits in found]


def nearest(allowed: np.ndarray) -> np.ndarray:
    """All rows that are allowed, the nearest first, for each query."""
    scores = QUERIES @ VECTORS.T
    scores[:, ~allowed] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, : int(allowed.sum())]


def test_a_filter_that_leaves_few_records_is_searched_exactly(index: Index) -> None:
    allowed = np.array([row % 100 == 7 and row % 4 != 0 for row in range(COUNT)])
    narrowing = Narrowing(parse('author.name = "a7"'))
    for accuracy in ("fast", "balanced", "exact"):
        assert rows(index, narrowing, accuracy=accuracy) == nearest(allowed)[:, :10].tolist()
    everything = rows(index, narrowing, COUNT)
    assert everything == nearest(allowed).tolist()


def test_a_filter_that_leaves_many_records_keeps_the_recall(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small an index would be searched exactly.
    monkeypatch.setattr(index_module, "SUBSET_FACTOR", 0)
    for text, share in (('lang = "de" and n < 600', 0.1), ('lang = "de"', 0.5), ("n >= 300", 0.67)):
        matching = index.matching(parse(text))
        allowed = np.zeros(COUNT, bool)
        allowed[matching.rows()] = True
        assert matching.count == allowed.sum() == pytest.approx(share * COUNT, rel=0.35)
        expected, _ = exact_top_k(QUERIES, VECTORS[allowed], 10)
        for accuracy, least in (("fast", 0.8), ("balanced", 0.95), ("exact", 1)):
            scores, found = index.search_rows(
                QUERIES,
                10,
                accuracy=accuracy,  # type: ignore[arg-type]
                matching=matching,
            )
            assert allowed[found].all()
            assert (scores >= expected[:, -1:] - 1e-5).mean() >= least, (text, accuracy)


def test_a_filter_that_matches_nothing_gives_no_hits(index: Index) -> None:
    assert rows(index, Narrowing(parse("exists nowhere"))) == [[]] * len(QUERIES)
    assert rows(index, Narrowing(parse('n = "3"'))) == [[]] * len(QUERIES)


def test_excluded_records_make_room_for_the_next(index: Index) -> None:
    (full,) = index.search(QUERIES[:1], 6, accuracy="exact")
    without = Narrowing(exclude_ids=(full[0].id, full[3].id, "no such id"))
    (hits,) = index.search(QUERIES[:1], 4, accuracy="exact", narrowing=without)
    assert [hit.id for hit in hits] == [full[place].id for place in (1, 2, 4, 5)]


def test_a_filter_and_excluded_records_go_together(flat: Index) -> None:
    allowed = np.array([row % 2 == 1 and row not in (1, 3) for row in range(COUNT)])
    narrowing = Narrowing(parse('lang = "de"'), exclude_ids=("r1", "r3"))
    assert rows(flat, narrowing) == nearest(allowed)[:, :10].tolist()
    assert all(sorted(found) == np.flatnonzero(allowed).tolist() for found in rows(flat, narrowing, COUNT))


def test_groups_have_the_best_hit_of_each_label_and_every_record_without(flat: Index) -> None:
    for top_k in (1, 5, 12, 320):
        for expected, found in zip(
            nearest(np.ones(COUNT, bool)), rows(flat, Narrowing(group_by_label=True), top_k), strict=True
        ):
            best: list[int] = []
            seen = set()
            for row in expected.tolist():
                if LABELS[row] is None or LABELS[row] not in seen:
                    best.append(row)
                    seen.add(LABELS[row])
            assert len(best) == 307
            assert found == best[:top_k]


def test_groups_look_no_deeper_than_their_bound(flat: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowing_module, "MAX_DEPTH", 40)
    for found in rows(flat, Narrowing(parse("exists label"), group_by_label=True), 8):
        assert 1 < len(found) <= 7
    # What is asked for is looked at, whatever the bound.
    assert len(rows(flat, Narrowing(), 100)[0]) == 100


def test_groups_end_at_the_least_score(flat: Index) -> None:
    (hits,) = flat.search(QUERIES[:1], 300, narrowing=Narrowing(group_by_label=True), min_score=0.3)
    assert 0 < len(hits) < 300
    assert min(hit.score for hit in hits) >= 0.3


@pytest.mark.parametrize("group", [False, True])
def test_pages_neither_overlap_nor_leave_a_hit_out(index: Index, group: bool) -> None:
    for text in (None, 'lang = "de"'):
        chosen = None if text is None else parse(text)
        whole = rows(index, Narrowing(chosen, group_by_label=group, offset=0), 30, queries=3)
        pages = [
            rows(index, Narrowing(chosen, group_by_label=group, offset=first), 7, queries=3, accuracy="fast")
            for first in range(0, 30, 7)
        ]
        for query, expected in enumerate(whole):
            assert [row for page in pages for row in page[query]][: len(expected)] == expected


def test_pages_of_records_with_equal_vectors_are_in_the_order_of_the_index(
    tmp_path: Path, bundle: Bundle
) -> None:
    vectors = np.repeat(VECTORS[:2], 60, axis=0)
    records = [Record("text", None, f"r{row}") for row in range(120)]
    index = build(tmp_path / "same", bundle, Layout("flat"), vectors, records)
    found = []
    for first in range(0, 121, 11):
        (hits,) = index.search(VECTORS[:1], 11, narrowing=Narrowing(offset=first))
        found += [int(hit.id[1:]) for hit in hits]
    assert found == list(range(120))


def test_rows_labels_and_vectors_are_looked_up(flat: Index) -> None:
    assert flat.rows_of(["r5", "r2999", "none"]) == {"r5": 5, "r2999": 2999}
    assert flat.labels([0, 1, 2]) == {0: None, 1: "label 1", 2: "label 2"}
    np.testing.assert_array_equal(flat.vectors([7, 3]), VECTORS[[7, 3]])


def test_a_filter_over_a_limit_and_a_closed_index_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    index = build(tmp_path / "index", bundle, Layout("flat"), VECTORS[:3], RECORDS[:3])
    narrowing = Narrowing(parse("exists n"))
    assert index.search(QUERIES[:1], narrowing=narrowing)
    index.close()
    with pytest.raises(CognateError, match="is closed"):
        index.search(QUERIES[:1], narrowing=narrowing)


@pytest.mark.parametrize("count", [0, 1])
def test_an_index_of_none_or_one_record_can_be_narrowed(tmp_path: Path, bundle: Bundle, count: int) -> None:
    index = build(tmp_path / "index", bundle, Layout("flat"), VECTORS[:count], RECORDS[:count])
    for narrowing in (
        Narrowing(parse("not exists n")),
        Narrowing(group_by_label=True),
        Narrowing(offset=0),
        Narrowing(exclude_ids=("r7",)),
    ):
        assert len(index.search(QUERIES[:1], narrowing=narrowing)[0]) == count
    assert not index.search(QUERIES[:1], narrowing=Narrowing(offset=1))[0]
