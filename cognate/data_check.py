"""What to know of record files before training on them: their labels, what is wrong, what leaks."""

import hashlib
import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from cognate.errors import RecordError
from cognate.records import EMPTY_TEXT, Rejects, read_numbered_records

Role = Literal["train", "queries", "index"]
Severity = Literal["error", "warning", "note"]

ROLES: tuple[Role, ...] = ("train", "queries", "index")
MAX_EXAMPLES = 5

LABEL_SIZES = ((1, "1"), (2, "2"), (4, "3-4"), (9, "5-9"), (49, "10-49"))
"""Records of a label, in classes: the largest number and the name of each; the last is 50+."""


class Finding(pydantic.BaseModel):
    """Something that a user should know of his files.

    Attributes:
        severity: "error" where training or evaluation fails or measures the wrong thing, "warning" where it
            is likely not meant, "note" where it only may be.
        kind: A stable name, such as "leaking_texts".
        message: One sentence.
        count: Of the lines, texts or labels that it is about.
        examples: The first few, as ``file:line``, or labels.
    """

    severity: Severity
    kind: str
    message: str
    count: int
    examples: list[str]


class FileSummary(pydantic.BaseModel):
    """What is in one file.

    Attributes:
        source: Its name.
        role: What it is for, None where that is not known.
        records: Good ones.
        bad_lines: Lines that are no record, those with an empty text left out.
        empty_texts: Lines whose text is empty.
        without_label: Records that have none.
        labels: Different ones.
        label_sizes: How many labels have 1, 2, 3-4, 5-9, 10-49 and 50+ records.
        largest_label: Records of the label that has most of them.
        single_record_labels: Labels with one record.
        repeated_texts: Records whose text an earlier record of the file has.
        contradictory_texts: Texts that occur under two labels or more.
    """

    source: str
    role: Role | None
    records: int
    bad_lines: int
    empty_texts: int
    without_label: int
    labels: int
    label_sizes: dict[str, int]
    largest_label: int
    single_record_labels: int
    repeated_texts: int
    contradictory_texts: int


class DataReport(pydantic.BaseModel):
    """What ``check_data`` found.

    Attributes:
        files: One for each file, in the order given.
        findings: The gravest first.
    """

    files: list[FileSummary]
    findings: list[Finding]

    def as_json(self) -> dict[str, object]:
        """What ``cognate data check --json`` prints."""
        return self.model_dump(mode="json")


def role_of(source: str | Path) -> Role | None:
    """Tell from a file's name what it is for: ``train.jsonl.gz`` is "train"; None where it does not say."""
    stem = Path(source).name.split(".", 1)[0].lower()
    return next((role for role in ROLES if role == stem), None)


def check_data(sources: Sequence[tuple[str | Path, Role | None]]) -> DataReport:
    """Look through record files, each by itself and each two of them together.

    Two texts are the same where they differ at most in the white space around them. Of every record its
    line, label and the hash of its text are kept, 24 bytes in all; texts are not.

    Args:
        sources: Record files, and what each is for.

    Returns:
        What was found. Bad lines are found, not raised.

    Raises:
        RecordError: A line after which the rest of its file cannot be read.
        CognateError: A file is not there, is of no known format, or has no records.
    """
    numbers: dict[str, int] = {}
    files = [_read(source, role, numbers) for source, role in sources]
    names = list(numbers)
    findings = [finding for file in files for finding in _findings_in(file, names)]
    for first, second in itertools.combinations(files, 2):
        findings.extend(_findings_between(first, second, names))
    findings.extend(_queries_without_relevant(files))
    order: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
    return DataReport(
        files=[file.summary() for file in files],
        findings=sorted(findings, key=lambda finding: order[finding.severity]),
    )


@dataclass
class _File:
    """One file's records, as columns.

    Attributes:
        hashes: Of the texts, uint64, shape (records,).
        lines: Where the records are, int64, same shape.
        labels: Numbers of their labels, -1 for none, int64, same shape.
        label_numbers: The different ones, ascending.
        label_counts: How many records each of those has.
        repeated: Positions of records whose text an earlier one has.
        contradictory: For each text that is under two labels or more, the first two positions that differ.
        bad: The first few lines that are no record, and how many there were.
        empty: Likewise those with an empty text.
    """

    source: str
    role: Role | None
    hashes: NDArray[np.uint64]
    lines: NDArray[np.int64]
    labels: NDArray[np.int64]
    bad: "_Lines"
    empty: "_Lines"
    label_numbers: NDArray[np.int64] = field(init=False)
    label_counts: NDArray[np.int64] = field(init=False)
    repeated: NDArray[np.int64] = field(init=False)
    contradictory: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.label_numbers, self.label_counts = np.unique(self.labels[self.labels >= 0], return_counts=True)
        # Stable, so that records of one text stay in the order of the file.
        order = np.argsort(self.hashes, kind="stable")
        same = self.hashes[order[1:]] == self.hashes[order[:-1]]
        self.repeated = np.sort(order[1:][same])
        labelled = order[self.labels[order] >= 0]
        left, right = labelled[:-1], labelled[1:]
        differ = (self.hashes[left] == self.hashes[right]) & (self.labels[left] != self.labels[right])
        pairs = zip(left[differ].tolist(), right[differ].tolist(), strict=True)
        first_of_each = {self.hashes[at].item(): (at, then) for at, then in reversed(list(pairs))}
        self.contradictory = sorted(first_of_each.values())

    def at(self, positions: Iterable[int]) -> list[str]:
        return [
            f"{self.source}:{self.lines[position]}" for position in itertools.islice(positions, MAX_EXAMPLES)
        ]

    def summary(self) -> FileSummary:
        sizes = dict.fromkeys((*(name for _, name in LABEL_SIZES), "50+"), 0)
        for count in self.label_counts.tolist():
            sizes[next((name for largest, name in LABEL_SIZES if count <= largest), "50+")] += 1
        return FileSummary(
            source=self.source,
            role=self.role,
            records=len(self.hashes),
            bad_lines=self.bad.count,
            empty_texts=self.empty.count,
            without_label=int((self.labels < 0).sum()),
            labels=len(self.label_numbers),
            label_sizes=sizes,
            largest_label=int(self.label_counts.max(initial=0)),
            single_record_labels=int((self.label_counts == 1).sum()),
            repeated_texts=len(self.repeated),
            contradictory_texts=len(self.contradictory),
        )


@dataclass
class _Lines:
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(example)


def _read(source: str | Path, role: Role | None, numbers: dict[str, int]) -> _File:
    bad, empty = _Lines(), _Lines()

    def report(error: RecordError) -> None:
        if error.reason == EMPTY_TEXT:
            empty.add(f"{error.source}:{error.line}")
        else:
            bad.add(str(error))

    hashes, lines, labels = array("Q"), array("q"), array("q")
    for line, record in read_numbered_records(source, rejects=Rejects(report)):
        digest = hashlib.blake2b(record.text.strip().encode(), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "little"))
        lines.append(line)
        labels.append(-1 if record.label is None else numbers.setdefault(record.label, len(numbers)))
    return _File(
        source=str(source),
        role=role,
        hashes=np.array(hashes, np.uint64),
        lines=np.array(lines, np.int64),
        labels=np.array(labels, np.int64),
        bad=bad,
        empty=empty,
    )


def _findings_in(file: _File, names: Sequence[str]) -> Iterable[Finding]:
    """What is wrong within one file; what nothing is wrong with has a count of 0 and is left out."""
    summary = file.summary()
    needs_label = file.role in ("train", "queries")
    single = file.label_numbers[file.label_counts == 1].tolist() if file.role in ("train", None) else []
    one_label = file.role == "train" and summary.labels == 1
    possible: list[tuple[Severity, str, int, str, list[str]]] = [
        ("error", "bad_lines", summary.bad_lines, "lines are no record", file.bad.examples),
        ("error", "empty_texts", summary.empty_texts, "texts are empty", file.empty.examples),
        (
            "error",
            "contradictory_texts",
            summary.contradictory_texts,
            "texts occur under more than one label",
            [" and ".join(file.at(pair)) for pair in file.contradictory[:MAX_EXAMPLES]],
        ),
        (
            "warning",
            "repeated_texts",
            summary.repeated_texts,
            "records repeat the text of an earlier one",
            file.at(file.repeated.tolist()),
        ),
        (
            "error" if needs_label else "note",
            "without_label",
            summary.without_label,
            "records have no label, "
            + ("which they need" if needs_label else "so no query should find them"),
            file.at(np.flatnonzero(file.labels < 0).tolist()),
        ),
        (
            "warning" if file.role else "note",
            "single_record_labels",
            len(single),
            f"labels of {summary.labels} have a single record, so no positive to learn from",
            [names[label] for label in single[:MAX_EXAMPLES]],
        ),
        (
            "error",
            "one_label",
            int(one_label),
            "label is all there is, so there is nothing to tell apart",
            [names[label] for label in file.label_numbers.tolist()[:1]],
        ),
    ]
    for severity, kind, count, what, examples in possible:
        if count:
            message = f"{file.source}: {count} {what}"
            yield Finding(severity=severity, kind=kind, message=message, count=count, examples=examples)


def _findings_between(first: _File, second: _File, names: Sequence[str]) -> Iterable[Finding]:
    """What two files share: a leak between training and evaluation, fine between queries and index."""
    roles = {first.role, second.role}
    if len(roles) == 1 and None not in roles:
        return
    both = f"{first.source} and {second.source}"
    severity: Severity = "note"
    kind, so = "shared", ""
    if None not in roles and "train" in roles:
        severity, kind, so = "error", "leaking", ", so the evaluation tests what was trained on"
    elif None not in roles:
        severity, so = "warning", ", so a query finds itself"

    labels = np.intersect1d(first.label_numbers, second.label_numbers).tolist()
    if labels and roles != {"queries", "index"}:
        yield Finding(
            severity=severity,
            kind=f"{kind}_labels",
            message=f"{both} share {len(labels)} labels{so}",
            count=len(labels),
            examples=[names[label] for label in labels[:MAX_EXAMPLES]],
        )
    left, right = np.intersect1d(first.hashes, second.hashes, return_indices=True)[1:]
    order = np.argsort(left)
    left, right = left[order], right[order]
    if len(left):
        yield Finding(
            severity=severity,
            kind=f"{kind}_texts",
            message=f"{both} share {len(left)} texts{so}",
            count=len(left),
            examples=_in_both(first, second, left, right),
        )
    one, other = first.labels[left], second.labels[right]
    differ = (one >= 0) & (other >= 0) & (one != other)
    if differ.any():
        yield Finding(
            severity="error",
            kind="contradictory_texts",
            message=f"{both} have {differ.sum()} texts under different labels",
            count=int(differ.sum()),
            examples=_in_both(first, second, left[differ], right[differ]),
        )


def _in_both(first: _File, second: _File, left: NDArray[np.int64], right: NDArray[np.int64]) -> list[str]:
    pairs = zip(first.at(left.tolist()), second.at(right.tolist()), strict=True)
    return [f"{one} and {other}" for one, other in pairs]


def _queries_without_relevant(files: Sequence[_File]) -> Iterable[Finding]:
    """Queries that no evaluation can use, since no record of the index has their label."""
    indexes = [file.label_numbers for file in files if file.role == "index"]
    if not indexes:
        return
    for file in files:
        alone = np.flatnonzero((file.labels >= 0) & ~np.isin(file.labels, np.concatenate(indexes)))
        if file.role == "queries" and len(alone):
            yield Finding(
                severity="error" if len(alone) == len(file.labels) else "warning",
                kind="queries_without_relevant",
                message=f"{file.source}: {len(alone)} queries have a label that no record of the index has, "
                "so evaluation leaves them out",
                count=len(alone),
                examples=file.at(alone.tolist()),
            )
