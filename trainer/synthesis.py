"""Training triplets from texts without labels: an encoder finds candidates, a cross-encoder judges them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from cognate import models
from cognate.errors import CognateError
from cognate.evaluation import TextEncoder
from cognate.records import Record

BATCH = 32
"""Pairs that the cross-encoder reads at a time."""


@dataclass(frozen=True)
class Triplet:
    """A query, a text that answers it or means the same, and one that is like it but does not.

    Attributes:
        anchor: The query.
        positive: The candidate with the best score.
        negative: One with a score that is lower by the margin or more.
        positive_score: By the cross-encoder, between 0 and 1.
        negative_score: The same.
    """

    anchor: str
    positive: str
    negative: str
    positive_score: float
    negative_score: float


def load_cross_encoder(name: str) -> CrossEncoder:
    """Load a cross-encoder that gives a pair of texts one score.

    Args:
        name: A folder, or a Hugging Face id.

    Raises:
        ModelError: There is no such model, or it cannot be loaded.
        CognateError: It is none that gives one score.
    """
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model: CrossEncoder = models.load(
        name,
        lambda source, local: CrossEncoder(
            source, trust_remote_code=False, local_files_only=local, model_kwargs={"use_safetensors": True}
        ),
    )
    kinds = (model.config and model.config.architectures) or []
    # Any other encoder is given a head of random weights.
    if model.num_labels != 1 or not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise CognateError(
            f"{name} is no cross-encoder that gives a pair of texts one score; one is, for example, "
            "cross-encoder/ms-marco-MiniLM-L6-v2"
        )
    return model


def synthesize(
    queries: Sequence[Record],
    corpus: Sequence[Record],
    encoder: TextEncoder,
    cross_encoder: CrossEncoder,
    *,
    candidates: int = 50,
    negatives: int = 4,
    min_score: float = 0.5,
    margin: float = 0.3,
) -> Iterator[list[Triplet]]:
    """Make triplets of queries and the records that are nearest to them.

    Source of mining with one model and scoring with another: Wang et al., "GPL: generative pseudo labeling",
    2022. The margin keeps out candidates that may be positives too.

    Args:
        queries: What is asked; labels are not looked at.
        corpus: Where it is searched.
        encoder: Finds the candidates.
        cross_encoder: Scores them; its one output is put through a sigmoid.
        candidates: Nearest records that are scored for each query.
        negatives: Triplets of each query, at most; the nearest negatives are taken.
        min_score: Of a positive, at least; a query whose best candidate has less gives no triplet.
        margin: By how much less a negative must have.

    Yields:
        The triplets of each query, in order; of some none.

    Raises:
        CognateError: There is no query, or no record.
    """
    if not queries or not corpus:
        raise CognateError("there is nothing to make triplets of: both queries and corpus need records")
    texts = [record.text for record in corpus]
    rows = _nearest(encoder, [query.text for query in queries], texts, candidates)
    for query, near in zip(queries, rows, strict=True):
        # Each text once, and not the query's own.
        found = list(dict.fromkeys(texts[row] for row in near if texts[row] != query.text))
        scores = _scores(cross_encoder, query.text, found)
        best = int(scores.argmax()) if found else 0
        if not found or scores[best] < min_score:
            yield []
            continue
        worse = np.flatnonzero(scores <= scores[best] - margin)[:negatives]
        yield [
            Triplet(query.text, found[best], found[other], float(scores[best]), float(scores[other]))
            for other in worse.tolist()
        ]


def _nearest(
    encoder: TextEncoder, queries: Sequence[str], texts: Sequence[str], count: int
) -> NDArray[np.int64]:
    vectors = encoder.encode(texts, "passage")
    # One more, in case one of them is the query.
    count = min(count + 1, len(texts))
    _, rows = faiss.knn(encoder.encode(queries, "query"), vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
    nearest: NDArray[np.int64] = rows
    return nearest


def _scores(cross_encoder: CrossEncoder, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """How well each text fits the query, between 0 and 1; float32, shape (texts,)."""
    if not texts:
        return np.empty(0, np.float32)
    scores = cross_encoder.predict(
        [(query, text) for text in texts],
        batch_size=BATCH,
        activation_fn=torch.nn.Sigmoid(),
        show_progress_bar=False,
    )
    return np.asarray(scores, np.float32)
