"""The parity gate: are a bundle's vectors those that torch gives?"""

import importlib.resources
import itertools
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from cognate.bundle import Parity
from cognate.errors import CognateError
from cognate.metrics import METRICS
from cognate.records import read_records

LIMITS: dict[str, dict[str, float]] = {
    "fp32": {"min_cosine": 0.9999, "mean_cosine": 0.9999, "top_10_overlap": 0.99, "metrics": 0.001},
    "fp16": {"min_cosine": 0.999, "mean_cosine": 0.9999, "top_10_overlap": 0.97, "metrics": 0.001},
    "bf16": {"min_cosine": 0.99, "mean_cosine": 0.998, "top_10_overlap": 0.9, "metrics": 0.001},
    "int8": {"min_cosine": 0.98, "mean_cosine": 0.995, "top_10_overlap": 0.85, "metrics": 0.001},
}
"""By precision: what each figure must reach over the parity texts, and how much a metric may lose."""

MIN_COSINE = LIMITS["fp32"]["min_cosine"]
"""What the smallest cosine over the parity texts must reach in fp32."""

FIGURES = {
    "min_cosine": "the smallest cosine between torch's vectors and the bundle's",
    "mean_cosine": "the mean cosine between torch's vectors and the bundle's",
    "top_10_overlap": "the share of the ten nearest texts that are torch's",
}
"""What has a limit from below, besides the metrics, in words."""

ACCEPTABLE = (*FIGURES, *METRICS)
"""What ``allow_loss`` may name."""

NEIGHBOURS = 10
TIE = 1e-6
"""Texts whose cosines differ by less are equally near."""

ODD_TEXTS = (
    "",
    " ",
    "a",
    "?",
    "🙂",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈",
    "怎样学习中文",
    "كيف أتعلم البرمجة؟",
    "Zażółć gęślą jaźń",
    "e\u0301te\u0301 a\u0300 l'e\u0302tre",
    "line one\nline two\ttabbed",
    "NUL \x00 inside",
    "x" * 10_000,
    "word " * 2_000,
)


def sample_questions() -> list[str]:
    """The questions of the sample."""
    with importlib.resources.as_file(importlib.resources.files("cognate") / "sample/queries.jsonl") as path:
        return [record.text for record in read_records(path)]


def parity_texts(max_length: int) -> list[str]:
    """Real texts of all lengths, from one word to past ``max_length`` tokens, and odd ones.

    Args:
        max_length: Tokens that the model reads of a text.

    Returns:
        The questions of the sample, and runs of them of growing length.
    """
    questions = sample_questions()
    words = list(itertools.islice(itertools.cycle(" ".join(questions).split()), max_length + 64))
    # Every length where short texts differ most, then ever wider steps, the last one past the limit.
    lengths = [*range(1, 33), *range(33, 129, 8), *range(129, len(words), 32), len(words)]
    return [*ODD_TEXTS, *questions[:64], *(" ".join(words[:length]) for length in lengths)]


def measure_parity(theirs: NDArray[np.float32], ours: NDArray[np.float32]) -> Parity:
    """Compare two encodings of the same texts.

    Args:
        theirs: Torch's, float32, shape (texts, dimension), unit length.
        ours: The bundle's, same shape.
    """
    cosines = (theirs.astype(np.float64) * ours).sum(axis=1)
    return Parity(
        texts=len(cosines),
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        max_abs_difference=float(np.abs(theirs - ours).max()),
        top_10_overlap=_overlap(theirs, ours),
    )


def _overlap(theirs: NDArray[np.float32], ours: NDArray[np.float32]) -> float:
    count = min(NEIGHBOURS, len(theirs) - 1)
    if count < 1:
        return 1.0
    wanted, found = theirs @ theirs.T, ours @ ours.T
    np.fill_diagonal(wanted, -2)
    np.fill_diagonal(found, -2)
    tenth = np.sort(wanted, axis=1)[:, -count]
    nearest = np.argsort(-found, axis=1, kind="stable")[:, :count]
    return float((np.take_along_axis(wanted, nearest, 1) >= tenth[:, None] - TIE).mean())


def check_names(allow_loss: Collection[str]) -> None:
    """Refuse a name that is none of ``ACCEPTABLE``.

    Raises:
        CognateError: There is such a name.
    """
    for name in allow_loss:
        if name not in ACCEPTABLE:
            raise CognateError(f"no loss is called {name!r}; choose of {', '.join(ACCEPTABLE)}")


def limit_of(name: str, precision: str) -> float:
    """What a figure must reach, or a metric's difference, which must not be below it.

    Args:
        name: One of ``ACCEPTABLE``.
        precision: Of the bundle.
    """
    limits = LIMITS[precision]
    return -limits["metrics"] if name in METRICS else limits[name]


def figures_of(parity: Parity) -> dict[str, float]:
    """What was measured of ``ACCEPTABLE``, by name; of a metric, its difference."""
    measured = {name: getattr(parity, name) for name in FIGURES}
    known = {name: float(value) for name, value in measured.items() if value is not None}
    return known | (parity.metric_differences or {})


def losses(parity: Parity, precision: str) -> dict[str, str]:
    """What is beyond its limit, by name, in words.

    Args:
        parity: As measured.
        precision: Of the bundle.
    """
    found = {}
    for name, value in figures_of(parity).items():
        limit = limit_of(name, precision)
        if name in METRICS and value < limit:
            found[name] = f"{name} loses {-value:.4f}, more than {-limit}"
        elif not value >= limit:  # also where it is not a number
            found[name] = f"{FIGURES[name]} is {value:.6f}, below {limit}"
    return found
