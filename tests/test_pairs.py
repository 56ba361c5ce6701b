"""Pairs to groups, groups to train/queries/index."""

import csv
import gzip
import itertools
import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cognate.artifact import MANIFEST
from cognate.errors import ArtifactError, CognateError, RecordError
from cognate.pairs import (
    TEXT_COLUMNS,
    DatasetManifest,
    Pair,
    group_pairs,
    read_pairs,
    split_groups,
    write_dataset,
)
from cognate.records import Record, Rejects, read_records

QUORA_HEADER = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"

pairs_of_few_texts = st.lists(
    st.tuples(st.integers(0, 25), st.integers(0, 25), st.booleans()).map(
        lambda three: Pair(1, f"text {three[0]}", f"text {three[1]}", three[2])
    ),
    max_size=60,
)


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8", newline="")
    return path


def plain(records: list[Record]) -> list[tuple[str, str | None]]:
    return [(record.text, record.label) for record in records]


def groups_of(*groups: str, alone: int = 0) -> list[Pair]:
    """Pairs that connect the words of each group, and ``alone`` texts with no duplicate."""
    pairs = [
        Pair(1, left, right, True)
        for group in map(str.split, groups)
        for left, right in itertools.pairwise(group)
    ]
    return pairs + [Pair(2, f"alone {n}", f"alone {n + 1}", False) for n in range(0, alone, 2)]


# Reading


@pytest.mark.parametrize(("first", "second"), TEXT_COLUMNS)
@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_a_header_names_the_two_text_columns(
    tmp_path: Path, first: str, second: str, ending: str, delimiter: str
) -> None:
    rows = [("n", second.upper(), first), ("1", "beta", " alpha ")]
    path = write(tmp_path / f"pairs.{ending}", "".join(delimiter.join(row) + "\n" for row in rows))
    assert list(read_pairs(path)) == [Pair(2, "alpha", "beta", True)]


def test_quora_question_pairs_are_read_as_they_are_published(tmp_path: Path) -> None:
    path = tmp_path / "quora.tsv.gz"
    rows = [
        "0\t1\t2\tWhat is a?\tWhat's a?\t1",
        '1\t3\t4\t"Who said ""no""?"\t"Why\nnot?"\t0',
        "2\t5\t6\tb?\tc?\t1",
    ]
    path.write_bytes(gzip.compress((QUORA_HEADER + "\n".join(rows)).encode()))
    assert list(read_pairs(path)) == [
        Pair(2, "What is a?", "What's a?", True),
        Pair(3, 'Who said "no"?', "Why\nnot?", False),
        Pair(5, "b?", "c?", True),
    ]


def test_two_columns_without_a_header_are_duplicate_pairs_from_the_first_line(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", "one\tuno\ntwo\tdos\n")
    assert list(read_pairs(path)) == [Pair(1, "one", "uno", True), Pair(2, "two", "dos", True)]


def test_more_columns_without_a_known_header_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", "left,right,is_duplicate\na,b,1\n")
    with pytest.raises(RecordError, match=r"pairs\.csv:1: .*question1/question2.*anchor/positive"):
        list(read_pairs(path))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1\t1\t2\ta\tb\tyes", "is_duplicate must be 0 or 1, not 'yes'"),
        ("1\t1\t2\ta\tb\t", "is_duplicate must be 0 or 1, not ''"),
        ("1\t1\t2\t \tb\t1", "question1 is empty"),
        ("1\t1\t2\ta\t\t0", "question2 is empty"),
        ("1\t1\t2\ta\tb", "5 columns where the first line has 6"),
        ("1\t1\t2\ta\tb\t1\tx", "7 columns where the first line has 6"),
    ],
)
def test_a_bad_row_is_told_by_line_or_skipped_and_counted(tmp_path: Path, row: str, reason: str) -> None:
    path = write(tmp_path / "quora.tsv", f"{QUORA_HEADER}0\t1\t2\tc\td\t1\n{row}\n2\t1\t2\te\tf\t0\n")
    with pytest.raises(RecordError) as caught:
        list(read_pairs(path))
    assert str(caught.value) == f"{path}:3: {reason}"

    told: list[str] = []
    rejects = Rejects(lambda error: told.append(str(error)))
    assert [pair.line for pair in read_pairs(path, rejects=rejects)] == [2, 4]
    assert told == [f"{path}:3: {reason}"]
    assert rejects.count == 1


@pytest.mark.parametrize("column", ["label", "score"])
def test_a_column_of_other_verdicts_is_not_taken_for_duplicates(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "pairs.csv", f"sentence1,sentence2,{column}\na,b,0\nc,d,0.5\n")
    with pytest.raises(RecordError, match=rf"pairs\.csv:3: {column} must be 0 or 1, not '0\.5'"):
        list(read_pairs(path))


@given(
    st.lists(
        st.tuples(
            *[st.text(st.characters(codec="utf-8"), min_size=1).map(str.strip).filter(bool)] * 2,
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_texts_written_as_csv_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, bool]]
) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["text1", "text2", "is_duplicate"])
        writer.writerows((first, second, int(duplicate)) for first, second, duplicate in rows)
    assert [(pair.first, pair.second, pair.duplicate) for pair in read_pairs(path)] == rows


# Grouping


@given(pairs_of_few_texts)
def test_groups_are_the_connected_components_of_the_duplicates(pairs: list[Pair]) -> None:
    texts = sorted({text for pair in pairs for text in (pair.first, pair.second)})
    at = {text: number for number, text in enumerate(texts)}
    edges = [(at[pair.first], at[pair.second]) for pair in pairs if pair.duplicate]
    rows, columns = np.array(edges, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(len(texts), len(texts)))
    _, component = connected_components(graph, directed=False)
    expected = {frozenset(text for text in texts if component[at[text]] == c) for c in component.tolist()}

    groups = group_pairs(pairs)
    assert {frozenset(texts) for texts in groups.labels.values()} == {g for g in expected if len(g) > 1}
    assert {frozenset([text]) for text in groups.alone} == {g for g in expected if len(g) == 1}
    assert groups.contradictions == sum(
        not pair.duplicate and component[at[pair.first]] == component[at[pair.second]] for pair in pairs
    )
    assert (groups.pairs, groups.duplicate_pairs) == (len(pairs), len(edges))


@given(pairs_of_few_texts, st.randoms(use_true_random=False))
def test_labels_do_not_depend_on_the_order_of_the_pairs(pairs: list[Pair], random: Random) -> None:
    shuffled = [Pair(pair.line, pair.second, pair.first, pair.duplicate) for pair in pairs]
    random.shuffle(shuffled)
    one, other = group_pairs(pairs), group_pairs(shuffled)
    assert (one.labels, one.alone, one.contradictions) == (other.labels, other.alone, other.contradictions)


def test_a_long_chain_of_duplicates_is_one_group() -> None:
    count = 50_000
    groups = group_pairs(Pair(n, str(n), str(n + 1), True) for n in range(count))
    assert [len(texts) for texts in groups.labels.values()] == [count + 1]


def test_a_text_that_is_its_own_duplicate_is_alone() -> None:
    groups = group_pairs([Pair(1, "a", "a", True)])
    assert (groups.labels, groups.alone) == ({}, ["a"])


def test_pairs_said_to_differ_but_connected_are_counted_with_their_lines() -> None:
    pairs = [
        Pair(2, "a", "b", True),
        Pair(3, "b", "c", True),
        Pair(4, "a", "c", False),
        Pair(5, "a", "x", False),
    ]
    groups = group_pairs(pairs)
    assert (groups.contradictions, groups.contradiction_lines) == (1, [4])


# Splitting


@given(pairs_of_few_texts, st.integers(0, 5), st.floats(0.01, 0.99), st.none() | st.integers(0, 9))
def test_a_split_shares_no_label_and_no_text_and_loses_none(
    pairs: list[Pair], seed: int, fraction: float, bound: int | None
) -> None:
    groups = group_pairs([*pairs, *groups_of("one uno", "two dos")])
    split = split_groups(groups, seed=seed, evaluation_fraction=fraction, max_distractors=bound)
    train, queries, index = ({r.label for r in part} for part in (split.train, split.queries, split.index))
    assert not train & (queries | index)
    assert queries <= index
    assert train | queries == set(groups.labels)
    assert train
    assert queries
    everything = [record.text for part in (split.train, split.queries, split.index) for record in part]
    assert len(everything) == len(set(everything))
    assert set(everything) >= {text for texts in groups.labels.values() for text in texts}
    assert set(everything) <= {text for texts in groups.labels.values() for text in texts} | set(groups.alone)

    assert min(Counter(record.label for record in split.train).values()) >= 2
    assert set(Counter(record.label for record in split.queries).values()) == {1}
    distractors = [record for record in split.index if record.label not in queries]
    assert len({record.label for record in distractors}) == len(distractors) == split.distractors
    others = len(split.index) - len(distractors)
    assert len(distractors) == min(len(groups.alone), others if bound is None else bound)


def test_the_evaluation_gets_its_fraction_of_the_labels() -> None:
    groups = group_pairs(groups_of(*(f"a{n} b{n} c{n}" for n in range(50))))
    split = split_groups(groups, evaluation_fraction=0.3)
    assert (len(split.queries), len(split.index), len(split.train)) == (15, 30, 105)


def test_a_seed_decides_the_split() -> None:
    groups = group_pairs(groups_of(*(f"a{n} b{n}" for n in range(50)), alone=40))
    one, same, other = (split_groups(groups, seed=seed) for seed in (1, 1, 2))
    assert plain(one.queries) == plain(same.queries)
    assert plain(one.index) == plain(same.index)
    assert plain(one.train) == plain(same.train)
    assert plain(one.queries) != plain(other.queries)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(fraction: float) -> None:
    with pytest.raises(CognateError, match="between 0 and 1"):
        split_groups(group_pairs(groups_of("a b", "c d")), evaluation_fraction=fraction)


# Writing


def quora_file(path: Path, *, labels: int = 10) -> Path:
    rows = [f"{n}\t1\t2\thow {n}?\twhy {n}?\t1" for n in range(labels)]
    rows += [f"{n}\t1\t2\thow {n}?\twhere {n}?\t0" for n in range(labels)]
    return write(path, QUORA_HEADER + "\n".join(rows) + "\n")


def test_a_dataset_is_three_record_files_with_a_manifest_that_counts(tmp_path: Path) -> None:
    source = quora_file(tmp_path / "quora.tsv")
    manifest = write_dataset(source, tmp_path / "data", seed=3)
    data = tmp_path / "data"
    assert sorted(path.name for path in data.iterdir()) == [
        "index.jsonl",
        MANIFEST,
        "queries.jsonl",
        "train.jsonl",
    ]
    train, queries, index = (list(read_records(data / f"{n}.jsonl")) for n in ("train", "queries", "index"))
    counts = manifest.counts
    assert (
        (len(train), len(queries), len(index)) == (counts.train, counts.queries, counts.index) == (16, 2, 4)
    )
    assert (counts.labels, counts.train_labels, counts.texts) == (10, 8, 30)
    assert (counts.pairs, counts.duplicate_pairs, counts.distractors, counts.distractors_left_out) == (
        20,
        10,
        2,
        8,
    )
    assert DatasetManifest.read(data) == manifest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_same_pairs_in_another_order_give_the_same_bytes(tmp_path: Path) -> None:
    source = quora_file(tmp_path / "quora.tsv")
    header, *rows = source.read_text().splitlines(keepends=True)
    reversed_source = write(tmp_path / "reversed.tsv", header + "".join(reversed(rows)))
    write_dataset(source, tmp_path / "one")
    write_dataset(reversed_source, tmp_path / "other")
    for name in ("train.jsonl", "queries.jsonl", "index.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_texts_are_written_readably_and_as_one_line_each(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.csv", '怎样?,"line\none"\na,b\n')
    write_dataset(source, tmp_path / "data")
    written = "".join((tmp_path / "data" / f"{n}.jsonl").read_text() for n in ("train", "queries", "index"))
    assert "怎样?" in written
    assert {json.loads(line)["text"] for line in written.splitlines()} == {"怎样?", "line\none", "a", "b"}


def test_an_existing_destination_is_refused_and_replaced_only_by_force(tmp_path: Path) -> None:
    source = quora_file(tmp_path / "quora.tsv")
    write_dataset(source, tmp_path / "data", seed=1)
    before = (tmp_path / "data/queries.jsonl").read_bytes()
    with pytest.raises(ArtifactError, match="--force"):
        write_dataset(source, tmp_path / "data", seed=2)
    assert (tmp_path / "data/queries.jsonl").read_bytes() == before
    write_dataset(source, tmp_path / "data", seed=2, force=True)
    assert DatasetManifest.read(tmp_path / "data").seed == 2


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    source = quora_file(tmp_path / "quora.tsv")
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine/train.jsonl", "precious")
    with pytest.raises(ArtifactError, match="is not a dataset of cognate's"):
        write_dataset(source, tmp_path / "mine", force=True)
    assert (tmp_path / "mine/train.jsonl").read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no pairs"),
        (QUORA_HEADER, "no pairs"),
        (QUORA_HEADER + "1\t1\t2\ta\tb\t0\n", "1 pairs, none of them"),
        (QUORA_HEADER + "1\t1\t2\ta\ta \t1\n", "1 pairs, none of them"),
        (QUORA_HEADER + "1\t1\t2\ta\tb\t1\n", "one group"),
        (QUORA_HEADER + "1\t1\t2\ta\tb\t1\n2\t1\t2\t\tb\t1\n", r"quora\.tsv:3: question1 is empty"),
    ],
)
def test_what_cannot_be_split_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, content: str, reason: str
) -> None:
    source = write(tmp_path / "quora.tsv", content)
    with pytest.raises(CognateError, match=reason):
        write_dataset(source, tmp_path / "data")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("name", ["missing.tsv", "folder.tsv", "pairs.jsonl"])
def test_what_is_no_table_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.tsv").mkdir()
    write(tmp_path / "pairs.jsonl", '{"text": "a"}\n')
    with pytest.raises(CognateError, match=name.replace(".", r"\.")):
        write_dataset(tmp_path / name, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_skipped_lines_are_counted_in_the_manifest(tmp_path: Path) -> None:
    source = quora_file(tmp_path / "quora.tsv")
    with source.open("a") as file:
        file.write("9\t1\t2\t\tb\t1\n")
    rejects = Rejects(lambda error: None)
    assert write_dataset(source, tmp_path / "data", rejects=rejects).counts.rejected_lines == 1
