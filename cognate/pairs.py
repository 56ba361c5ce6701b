"""From pairs of texts that people marked as duplicates to records for training and evaluation."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pydantic

from cognate.artifact import Manifest, check_destination, publishing
from cognate.errors import CognateError, RecordError
from cognate.records import Record, Rejects, read_tables

TRAIN = "train.jsonl"
QUERIES = "queries.jsonl"
INDEX = "index.jsonl"

TEXT_COLUMNS = (
    ("question1", "question2"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("anchor", "positive"),
    ("query", "passage"),
)
"""Names of the two text columns that a header may have, in any case of letters."""

VERDICT_COLUMNS = ("is_duplicate", "label", "score")
"""Names of a column of 0 and 1. Without one every row is a duplicate pair."""

MAX_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts, and whether they mean the same.

    Attributes:
        line: Of the file, from 1.
        first: Without the white space around it; not empty.
        second: Likewise.
        duplicate: What people said of the two.
    """

    line: int
    first: str
    second: str
    duplicate: bool


@dataclass(frozen=True)
class Groups:
    """Texts grouped by the duplicate pairs that connect them.

    Attributes:
        labels: The texts, sorted, of each connected component of two or more, by its label, sorted. A
            label is made of its smallest text alone, so it depends neither on a seed nor on the order
            of the pairs.
        alone: The texts that are duplicates of no other, sorted.
        pairs: How many there were.
        duplicate_pairs: How many of them were duplicates.
        contradictions: Pairs that were said not to be duplicates, but whose texts other pairs connect.
        contradiction_lines: Where the first few of those are.
    """

    labels: dict[str, list[str]]
    alone: list[str]
    pairs: int
    duplicate_pairs: int
    contradictions: int
    contradiction_lines: list[int]


@dataclass(frozen=True)
class Split:
    """Records for training and for evaluation, which share no label and no text.

    Attributes:
        train: Two or more of each label.
        queries: One of each label of the evaluation.
        index: The others of those labels, then the distractors, each with a label of its own.
        distractors: How many those are.
    """

    train: list[Record]
    queries: list[Record]
    index: list[Record]
    distractors: int


class DatasetCounts(pydantic.BaseModel):
    """What became of the pairs.

    Attributes:
        pairs: Read from the file.
        rejected_lines: Passed over as bad.
        duplicate_pairs: Pairs of the first that were said to be duplicates.
        contradictions: Pairs that were said not to be, but whose texts other pairs connect.
        contradiction_lines: Where the first few of those are.
        texts: Different ones.
        labels: Groups of two or more texts.
        train_labels: Of those, the ones for training.
        train: Records in train.jsonl.
        queries: Records in queries.jsonl, one for each label of the evaluation.
        index: Records in index.jsonl, distractors included.
        distractors: Texts with no duplicate that are in index.jsonl.
        distractors_left_out: Texts with no duplicate that are in no file.
    """

    pairs: int
    rejected_lines: int
    duplicate_pairs: int
    contradictions: int
    contradiction_lines: list[int]
    texts: int
    labels: int
    train_labels: int
    train: int
    queries: int
    index: int
    distractors: int
    distractors_left_out: int


class DatasetManifest(Manifest):
    """What a folder of train.jsonl, queries.jsonl and index.jsonl was made of.

    Attributes:
        source: The file of pairs.
        seed: Of the split.
        evaluation_fraction: Of the labels.
        counts: What became of the pairs.
    """

    KIND: ClassVar[str] = "dataset"
    FORMAT_VERSION: ClassVar[int] = 1
    LIBRARIES: ClassVar[tuple[str, ...]] = ()

    source: str
    seed: int
    evaluation_fraction: float
    counts: DatasetCounts


def write_dataset(
    source: str | Path,
    destination: str | Path,
    *,
    seed: int = 0,
    evaluation_fraction: float = 0.2,
    max_distractors: int | None = None,
    rejects: Rejects | None = None,
    force: bool = False,
) -> DatasetManifest:
    """Make train.jsonl, queries.jsonl and index.jsonl of a file of pairs.

    The same pairs, in any order, and the same seed give the same files. Every text is held in memory.

    Args:
        source: As ``read_pairs`` reads it.
        destination: The folder to make, whole or not at all.
        seed: Decides which labels and which of their texts the evaluation gets.
        evaluation_fraction: Of the labels, between 0 and 1; at least one label goes to either side.
        max_distractors: Texts with no duplicate to put in the index. None: as many as it has others.
        rejects: Takes the bad lines; without it the first one raises.
        force: Whether a dataset that is there is replaced.

    Returns:
        The manifest of the folder.

    Raises:
        RecordError: A bad line, where no ``rejects`` takes it.
        CognateError: The file cannot be read, has no pair, or too few duplicates to split, or an option
            is out of range.
        ArtifactError: The destination exists or cannot be written.
    """
    destination = Path(destination)
    check_destination(destination, DatasetManifest.KIND, force=force)
    rejected_before = rejects.count if rejects else 0
    groups = group_pairs(read_pairs(source, rejects=rejects))
    if not groups.labels:
        found = f"{groups.pairs} pairs, none of them two different texts marked as duplicates"
        raise CognateError(
            f"{source} has {found if groups.pairs else 'no pairs'}; there is nothing to train on"
        )
    if len(groups.labels) == 1:
        raise CognateError(
            f"{source} connects all its duplicates in one group; training and evaluation need a group each"
        )
    split = split_groups(
        groups, seed=seed, evaluation_fraction=evaluation_fraction, max_distractors=max_distractors
    )
    with publishing(destination, DatasetManifest.KIND, force=force) as folder:
        for name, records in ((TRAIN, split.train), (QUERIES, split.queries), (INDEX, split.index)):
            _write_records(folder / name, records)
        return DatasetManifest.write(
            folder,
            source=str(source),
            seed=seed,
            evaluation_fraction=evaluation_fraction,
            counts=DatasetCounts(
                pairs=groups.pairs,
                rejected_lines=rejects.count - rejected_before if rejects else 0,
                duplicate_pairs=groups.duplicate_pairs,
                contradictions=groups.contradictions,
                contradiction_lines=groups.contradiction_lines,
                texts=sum(map(len, groups.labels.values())) + len(groups.alone),
                labels=len(groups.labels),
                train_labels=len(groups.labels) - len(split.queries),
                train=len(split.train),
                queries=len(split.queries),
                index=len(split.index),
                distractors=split.distractors,
                distractors_left_out=len(groups.alone) - split.distractors,
            ),
        )


def read_pairs(source: str | Path, *, rejects: Rejects | None = None) -> Iterator[Pair]:
    """Read pairs one by one from a CSV or TSV file (also ``.gz``, ``.zst``).

    The header names the two text columns (``TEXT_COLUMNS``) and may name one of 0 and 1
    (``VERDICT_COLUMNS``); other columns are passed over. So the layout of Quora's question pairs is read
    as it is. A file of two columns whose first line names no such columns has no header: every line of it
    is a duplicate pair.

    Args:
        source: A path.
        rejects: Takes the bad lines; without it the first one raises.

    Yields:
        Pairs in the file's order.

    Raises:
        RecordError: A bad line, where no ``rejects`` takes it, or one after which the rest cannot be read.
        CognateError: The file is not there, or is neither CSV nor TSV.
    """
    columns: _Columns | None = None
    for line, cells in read_tables(source):
        if columns is None:
            columns, is_header = _read_header(str(source), line, cells)
            if is_header:
                continue
        try:
            yield columns.pair(line, cells)
        except ValueError as error:
            refused = RecordError(str(source), line, str(error))
            if rejects is None:
                raise refused from None
            rejects.add(refused)


def group_pairs(pairs: Iterable[Pair]) -> Groups:
    """Group texts by connected components: the duplicates of a duplicate are duplicates.

    Args:
        pairs: Any number.
    """
    numbers: dict[str, int] = {}
    parents = array("q")
    others = array("q")  # Line and two texts of each pair that is not a duplicate.
    count = 0
    for pair in pairs:
        count += 1
        first, second = (_number(text, numbers, parents) for text in (pair.first, pair.second))
        if pair.duplicate:
            _connect(parents, first, second)
        else:
            others.extend((pair.line, first, second))
    components: dict[int, list[str]] = {}
    for text, number in numbers.items():
        components.setdefault(_root(parents, number), []).append(text)
    contradiction_lines = [
        others[at]
        for at in range(0, len(others), 3)
        if _root(parents, others[at + 1]) == _root(parents, others[at + 2])
    ]
    groups = sorted((_label(texts), sorted(texts)) for texts in components.values() if len(texts) > 1)
    return Groups(
        labels=dict(groups),
        alone=sorted(texts[0] for texts in components.values() if len(texts) == 1),
        pairs=count,
        duplicate_pairs=count - len(others) // 3,
        contradictions=len(contradiction_lines),
        contradiction_lines=contradiction_lines[:MAX_EXAMPLES],
    )


def split_groups(
    groups: Groups, *, seed: int = 0, evaluation_fraction: float = 0.2, max_distractors: int | None = None
) -> Split:
    """Give each label to training or to evaluation.

    Args:
        groups: At least two labels.
        seed: Decides which labels and which of their texts the evaluation gets.
        evaluation_fraction: Of the labels, between 0 and 1; at least one label goes to either side.
        max_distractors: Texts with no duplicate to put in the index. None: as many as it has others.

    Returns:
        The split.

    Raises:
        CognateError: An option is out of range.
    """
    if not 0 < evaluation_fraction < 1:
        raise CognateError(f"the evaluation fraction is {evaluation_fraction}; it must lie between 0 and 1")
    if max_distractors is not None and max_distractors < 0:
        raise CognateError(f"the number of distractors is {max_distractors}; it must be at least 0")
    count = round(len(groups.labels) * evaluation_fraction)
    evaluated = set(_shuffled(groups.labels, seed)[: min(max(count, 1), len(groups.labels) - 1)])
    train: list[Record] = []
    queries: list[Record] = []
    index: list[Record] = []
    for label, texts in groups.labels.items():
        if label in evaluated:
            query, *others = _shuffled(texts, seed)
            queries.append(Record(query, label))
            index.extend(Record(text, label) for text in others)
        else:
            train.extend(Record(text, label) for text in texts)
    bound = len(index) if max_distractors is None else max_distractors
    distractors = _shuffled(groups.alone, seed)[:bound]
    index.extend(Record(text, _label([text])) for text in distractors)
    return Split(train, queries, index, len(distractors))


@dataclass(frozen=True)
class _Columns:
    """Where a file has its texts and its verdicts, and how many columns each line must have."""

    names: Sequence[str]
    first: int
    second: int
    verdict: int | None

    def pair(self, line: int, cells: Sequence[str]) -> Pair:
        if len(cells) != len(self.names):
            raise ValueError(f"{len(cells)} columns where the first line has {len(self.names)}")
        first, second = (self._text(cells, column) for column in (self.first, self.second))
        if self.verdict is None:
            return Pair(line, first, second, duplicate=True)
        verdict = cells[self.verdict].strip()
        if verdict not in ("0", "1"):
            raise ValueError(f"{self.names[self.verdict]} must be 0 or 1, not {verdict[:40]!r}")
        return Pair(line, first, second, verdict == "1")

    def _text(self, cells: Sequence[str], column: int) -> str:
        text = cells[column].strip()
        if not text:
            raise ValueError(f"{self.names[column]} is empty")
        return text


def _read_header(name: str, line: int, cells: Sequence[str]) -> tuple[_Columns, bool]:
    """The columns that the first line tells of, and whether it is a header."""
    header = [cell.strip().lower() for cell in cells]
    for first, second in TEXT_COLUMNS:
        if first in header and second in header:
            verdict = next((header.index(column) for column in VERDICT_COLUMNS if column in header), None)
            return _Columns(header, header.index(first), header.index(second), verdict), True
    if len(cells) == 2:
        return _Columns(("the first text", "the second text"), 0, 1, None), False
    known = ", ".join(f"{first}/{second}" for first, second in TEXT_COLUMNS)
    raise RecordError(
        name,
        line,
        f"the header names no two text columns (known: {known}), and there are not just two columns",
    )


def _number(text: str, numbers: dict[str, int], parents: "array[int]") -> int:
    number = numbers.setdefault(text, len(numbers))
    if number == len(parents):
        parents.append(number)
    return number


def _root(parents: "array[int]", number: int) -> int:
    while parents[number] != number:
        # Path halving: the next search has half as far to go.
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


def _connect(parents: "array[int]", first: int, second: int) -> None:
    low, high = sorted((_root(parents, first), _root(parents, second)))
    parents[high] = low


def _label(texts: Iterable[str]) -> str:
    return "g" + hashlib.sha256(min(texts).encode()).hexdigest()[:16]


def _shuffled(values: Iterable[str], seed: int) -> list[str]:
    """Order by a hash: the same whatever order they came in, and little changed by one more or less."""
    return sorted(values, key=lambda value: hashlib.sha256(f"{seed} {value}".encode()).digest())


def _write_records(path: Path, records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps({"text": record.text, "label": record.label}, ensure_ascii=False) + "\n")
