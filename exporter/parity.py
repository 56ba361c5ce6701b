"""The parity gate: are a bundle's vectors those that torch gives?"""

import importlib.resources
import itertools

import numpy as np
from numpy.typing import NDArray

from cognate.bundle import Parity
from cognate.records import read_records

MIN_COSINE = 0.9999
"""What the smallest cosine over the parity texts must reach in fp32."""

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


def parity_texts(max_length: int) -> list[str]:
    """Real texts of all lengths, from one word to past ``max_length`` tokens, and odd ones.

    Args:
        max_length: Tokens that the model reads of a text.

    Returns:
        The questions of the sample, and runs of them of growing length.
    """
    with importlib.resources.as_file(importlib.resources.files("cognate") / "sample/queries.jsonl") as path:
        questions = [record.text for record in read_records(path)]
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
    )
