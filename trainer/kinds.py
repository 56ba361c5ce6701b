"""Kinds of training data, told by their columns: labelled records, pairs, pairs with a score, triplets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cognate.errors import CognateError, RecordError
from cognate.records import EMPTY_TEXT, STDIN, read_rows

Kind = Literal["records", "pairs", "scored pairs", "triplets"]

ANCHORS = ("anchor", "query", "question", "sentence1", "text1", "question1", "premise")
POSITIVES = ("positive", "passage", "answer", "sentence2", "text2", "question2", "hypothesis")
NEGATIVE = "negative"
SCORES = ("score", "similarity")
VERDICTS = ("is_duplicate", "label")
"""Columns that say of each pair whether its texts belong together, where they have 0 and 1."""

LOSSES: dict[Kind, str] = {
    "pairs": "MultipleNegativesRankingLoss",
    "scored pairs": "CoSENTLoss",
    "triplets": "MultipleNegativesRankingLoss",
}
"""The loss of each kind, where none is asked for."""


@dataclass(frozen=True)
class Columns:
    """What a file's columns make of it.

    Attributes:
        kind: Of its rows.
        texts: The columns of the texts: anchor, positive and, of triplets, negative.
        score: The column of the score, where there is one.
        verdict: The column that says whether a pair's texts belong together, where there is one.
    """

    kind: Kind
    texts: tuple[str, ...] = ()
    score: str | None = None
    verdict: str | None = None


@dataclass(frozen=True)
class Tuples:
    """Pairs, pairs with a score, or triplets.

    Attributes:
        kind: Which of them.
        texts: Of each row its texts.
        scores: Of each row; empty where there are none.
        apart: Pairs that are marked 0, which were left out: their texts do not belong together.
    """

    kind: Kind
    texts: list[tuple[str, ...]]
    scores: list[float]
    apart: int = 0


def detect(source: str | Path) -> Columns:
    """Tell by the columns of a file's first row what kind of data it has.

    Raises:
        CognateError: The file cannot be read.
    """
    if str(source) == STDIN:
        return Columns("records")
    _, row = next(read_rows(source), (0, {"text": ""}))
    if "text" in row:
        return Columns("records")
    anchor = next((name for name in ANCHORS if name in row), None)
    positive = next((name for name in POSITIVES if name in row), None)
    if anchor is None or positive is None:
        # Whoever reads it says which column is not there.
        return Columns("records")
    if NEGATIVE in row:
        return Columns("triplets", (anchor, positive, NEGATIVE))
    score = next((name for name in SCORES if name in row), None)
    if score is not None:
        return Columns("scored pairs", (anchor, positive), score)
    # A label of another kind, such as a topic, says nothing of the pair.
    verdict = next((name for name in VERDICTS if row.get(name) in (0, 1, "0", "1")), None)
    return Columns("pairs", (anchor, positive), verdict=verdict)


def detect_all(sources: Sequence[str]) -> Columns:
    """Tell what kind of data several files have.

    Raises:
        CognateError: They are of more than one kind, or as ``detect``.
    """
    found = [detect(source) for source in sources]
    for source, columns in zip(sources, found, strict=True):
        if columns.kind != found[0].kind:
            raise CognateError(
                f"{sources[0]} has {found[0].kind} and {source} has {columns.kind}; train on one "
                "kind at a time"
            )
    return found[0]


def read_tuples(sources: Sequence[str]) -> Tuples:
    """Read pairs, pairs with a score, or triplets; of pairs that are marked 0 and 1 those of 1.

    Raises:
        RecordError: A text, a score or a mark is missing or will not do.
        CognateError: A file cannot be read, or there are fewer than two rows.
    """
    texts: list[tuple[str, ...]] = []
    scores: list[float] = []
    apart = 0
    for source in sources:
        columns = detect(source)
        for line, row in read_rows(source):
            try:
                if columns.verdict is not None and not _belong_together(row, columns.verdict):
                    apart += 1
                    continue
                texts.append(tuple(_text(row, name) for name in columns.texts))
                if columns.score is not None:
                    scores.append(_score(row, columns.score))
            except ValueError as error:
                raise RecordError(str(source), line, str(error)) from None
    if len(texts) < 2:
        rows = f"{len(texts)} rows that are marked 1" if apart else f"{len(texts)} rows"
        raise CognateError(f"{' and '.join(sources)} has {rows}; training needs at least two")
    return Tuples(detect_all(sources).kind, texts, scores, apart)


def _text(row: Mapping[str, object], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"there is no {name}" if value is None else f"{name} must be a string")  # noqa: TRY004
    if not value.strip():
        raise ValueError(EMPTY_TEXT.replace("text", name))
    return value


def _belong_together(row: Mapping[str, object], name: str) -> bool:
    value = row.get(name)
    if value not in (0, 1, "0", "1"):
        raise ValueError(f"{name} must be 0 or 1, as in the first row, not {value!r}")
    return value in (1, "1")


def _score(row: Mapping[str, object], name: str) -> float:
    value = row.get(name)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, not {value!r}") from None
    if not -1 <= number <= 1:
        raise ValueError(f"{name} must be between -1 and 1, as a cosine is, not {number:g}")
    return number
