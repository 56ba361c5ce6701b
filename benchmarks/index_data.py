"""Vectors to measure indexes with: a mixture fitted to the vectors of real questions.

The mixture has a component for each real vector v. A vector of it is

    v + s u^a (d_1 g_1 + … + d_m g_m) / sqrt(m),    brought to unit length,

where d are the differences to the m nearest other real vectors, g are standard normal, and u is uniform in
0 to 1. So it lies along its component's neighbours, and not in all directions, where nothing would be near
anything; and it may lie close, as a question asked again, or far. s and a are those by which a mixture of
every eighth real vector, drawn to as many as there are real ones, has neighbours at the cosines at which
real questions find real ones.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cognate.exact import exact_top_k

Vectors = NDArray[np.float32]

NEIGHBOURS = 32
"""Real vectors that a component lies along: m."""

GROWTH = 8
"""The mixture is fitted on one real vector in so many."""

SPREADS = np.linspace(1.0, 3.0, 11)
EXPONENTS = (0.0, 0.25, 0.5)
CHUNK = 20_000


@dataclass(frozen=True)
class Neighbours:
    """What queries find among vectors.

    Attributes:
        top_1: Mean cosine of the nearest.
        top_10: Mean cosine of the ten nearest.
        tenth: Cosine of the tenth nearest: its 10th, 50th and 90th percentile over the queries.
        contrast: Relative contrast: the distance of any vector over that of the tenth nearest; median.
        dimension: Local intrinsic dimension (Levina and Bickel 2004) of the ten nearest; median.
    """

    top_1: float
    top_10: float
    tenth: tuple[float, float, float]
    contrast: float
    dimension: float


def neighbours(queries: Vectors, vectors: Vectors) -> Neighbours:
    """Measure what queries find, exactly."""
    scores, _ = exact_top_k(queries, vectors, 10)
    distances = np.sqrt(np.maximum(2 - 2 * scores.astype(np.float64), 1e-9))
    any_distance = np.sqrt(2 - 2 * (queries @ vectors.mean(0)))
    logs = np.log(distances[:, 9:] / distances[:, :9])
    low, middle, high = np.percentile(scores[:, 9], (10, 50, 90))
    return Neighbours(
        top_1=float(scores[:, 0].mean()),
        top_10=float(scores.mean()),
        tenth=(float(low), float(middle), float(high)),
        contrast=float(np.median(any_distance / distances[:, 9])),
        dimension=float(1 / np.median(logs.mean(axis=1))),
    )


class Mixture:
    """The mixture.

    Attributes:
        spread: s.
        exponent: a.
        real: What real questions find among real ones.
        fitted: What the mixture of a part of them finds in itself.
    """

    def __init__(self, real: Vectors, queries: Vectors) -> None:
        """Fit it.

        Args:
            real: float32, shape (count, dimension), unit length; in no order.
            queries: Real ones too, none of which is among them.
        """
        self.real = neighbours(queries, real)
        part = real[: len(real) // GROWTH]
        near = _nearest(part)
        choices = {}
        for spread, exponent in itertools.product(SPREADS.tolist(), EXPONENTS):
            drawn = _draw(part, near, len(real), spread, exponent, 0)
            found = neighbours(_draw(part, near, len(queries), spread, exponent, 1), drawn)
            off = abs(found.top_1 - self.real.top_1) + abs(found.top_10 - self.real.top_10)
            off += sum(abs(a - b) for a, b in zip(found.tenth, self.real.tenth, strict=True))
            choices[off] = (spread, exponent, found)
        self.spread, self.exponent, self.fitted = choices[min(choices)]
        self._real, self._near = real, _nearest(real)

    def draw(self, count: int, seed: int) -> Vectors:
        """Draw vectors: float32, shape (count, dimension), unit length."""
        vectors = np.empty((count, self._real.shape[1]), np.float32)
        for number, start in enumerate(range(0, count, CHUNK)):
            some = vectors[start : start + CHUNK]
            some[:] = _draw(self._real, self._near, len(some), self.spread, self.exponent, (seed, number))
        return vectors


def _nearest(vectors: Vectors) -> NDArray[np.int64]:
    """The rows of the nearest others of each."""
    _, rows = exact_top_k(vectors, vectors, NEIGHBOURS + 1)
    own = rows == np.arange(len(rows))[:, None]
    # One that has equals may not be among its own nearest.
    own[~own.any(axis=1), -1] = True
    return rows[~own].reshape(-1, NEIGHBOURS)


def _draw(
    real: Vectors,
    near: NDArray[np.int64],
    count: int,
    spread: float,
    exponent: float,
    seed: int | tuple[int, int],
) -> Vectors:
    random = np.random.default_rng(seed)
    components = random.integers(0, len(real), count)
    far = spread * random.random((count, 1)) ** exponent / NEIGHBOURS**0.5
    weights = (far * random.standard_normal((count, NEIGHBOURS))).astype(np.float32)
    vectors: Vectors = real[components] * (1 - weights.sum(axis=1, keepdims=True))
    for place in range(NEIGHBOURS):
        vectors += weights[:, place : place + 1] * real[near[components, place]]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def read_texts(file: Path, most: int) -> list[str]:
    """Texts of a record file, each once, in an order that has nothing to do with the file's."""
    with file.open() as lines:
        texts = list(dict.fromkeys(json.loads(line)["text"] for line in lines))
    return [texts[row] for row in np.random.default_rng(0).permutation(len(texts))[:most]]
