"""Class-balanced batches: P labels, up to K records of each, every record once an epoch."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.base.sampler import DefaultBatchSampler

OPEN_BATCHES = 64
"""How many batches are filled at a time. More find a place for a label that is in many of them."""


def class_balanced_batches(
    labels: Sequence[int],
    *,
    labels_per_batch: int,
    records_per_label: int,
    rng: np.random.Generator,
    neighbours: NDArray[np.int64] | None = None,
) -> Iterator[list[int]]:
    """Share records out over batches so that every record of a batch has another of its label there.

    The records of a label are shuffled and cut into even chunks of at most ``records_per_label`` (one more
    where that leaves a record alone). The chunks, shuffled, each go to a batch that has none of that label
    yet. Where labels have neighbours, a chunk of each goes with them.

    Args:
        labels: The label of each record; each occurs at least twice.
        labels_per_batch: Chunks of a batch; the last ones may have fewer, but at least 2.
        records_per_label: Records of a chunk, at least 2.
        rng: Decides the order.
        neighbours: Of each label those that shall be in its batches, shape (labels, n), -1 for none; or None.

    Yields:
        Positions in ``labels``; together each once, but those of an incomplete last batch of one label.
    """
    by_label: dict[int, list[int]] = {}
    for position in rng.permutation(len(labels)):
        by_label.setdefault(labels[position], []).append(int(position))
    chunks = [
        (label, chunk.tolist())
        for label, positions in by_label.items()
        for chunk in np.array_split(
            np.array(positions), max(1, min(-(-len(positions) // records_per_label), len(positions) // 2))
        )
    ]
    batches: list[dict[int, list[int]]] = []
    order = rng.permutation(len(chunks)).tolist()
    if neighbours is not None:
        order = list(_beside_neighbours(order, [label for label, _ in chunks], neighbours))
    for number in order:
        label, chunk = chunks[number]
        batch = next((batch for batch in batches if label not in batch), None)
        if batch is None:
            batches.append(batch := {})
        batch[label] = chunk
        if len(batch) == labels_per_batch or len(batches) > OPEN_BATCHES:
            full = batch if len(batch) == labels_per_batch else batches[0]
            batches = [other for other in batches if other is not full]
            if len(full) > 1:
                yield [position for records in full.values() for position in records]
    for batch in batches:
        if len(batch) > 1:
            yield [position for records in batch.values() for position in records]


def _beside_neighbours(order: list[int], labels: list[int], neighbours: NDArray[np.int64]) -> Iterator[int]:
    """Put chunks in an order in which one of each neighbour of a label follows it, while there are."""
    left: dict[int, list[int]] = {}
    for number in reversed(order):
        left.setdefault(labels[number], []).append(number)
    for number in order:
        # The last one of its label is the next in the order, if it was not brought forward.
        if not left[labels[number]] or left[labels[number]][-1] != number:
            continue
        yield left[labels[number]].pop()
        for other in neighbours[labels[number]].tolist():
            if left.get(other):
                yield left[other].pop()


def distinct_batches(
    rows: Sequence[tuple[str, ...]], *, batch_size: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Share rows out over batches in which no text occurs twice: each row's are the others' negatives.

    Args:
        rows: The texts of each row.
        batch_size: Rows of a batch, at most.
        rng: Decides the order.

    Yields:
        Positions in ``rows``; together each once, but a row that is alone at the end.
    """
    batches: list[tuple[list[int], set[str]]] = []
    for position in rng.permutation(len(rows)).tolist():
        texts = set(rows[position])
        batch = next((batch for batch in batches if not texts & batch[1]), None)
        if batch is None:
            batches.append(batch := ([], set()))
        batch[0].append(position)
        batch[1].update(texts)
        if len(batch[0]) == batch_size or len(batches) > OPEN_BATCHES:
            full = batch if len(batch[0]) == batch_size else batches[0]
            batches = [other for other in batches if other is not full]
            if len(full[0]) > 1:
                yield full[0]
    for positions, _ in batches:
        if len(positions) > 1:
            yield positions


def random_batches(rows: int, *, batch_size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Share rows out over batches at random.

    Args:
        rows: How many there are.
        batch_size: Rows of a batch, at most.
        rng: Decides the order.

    Yields:
        Positions of rows; together each once, but a row that is alone at the end.
    """
    order = rng.permutation(rows).tolist()
    for start in range(0, rows, batch_size):
        if len(batch := order[start : start + batch_size]) > 1:
            yield batch


class SeededBatchSampler(DefaultBatchSampler):
    """Gives sentence-transformers' trainer the batches of each epoch, the same ones for the same seed.

    Attributes:
        share: The number of this process, and of how many; each gets its part of every batch.
    """

    def __init__(
        self,
        rows: int,
        draw: Callable[[np.random.Generator], Iterator[list[int]]],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        """Take how many rows there are, and what draws the batches of an epoch."""
        super().__init__(range(rows), batch_size=batch_size, drop_last=False, seed=seed)
        self.seed = seed
        self._draw = draw
        self._drawn: tuple[int, list[list[int]]] | None = None
        self.share = (0, 1)

    def _batches(self) -> list[list[int]]:
        epoch = getattr(self, "epoch", 0)
        if self._drawn is None or self._drawn[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._drawn = epoch, list(self._draw(rng))
        return self._drawn[1]

    def batch(self, number: int) -> list[int]:
        """The positions of one batch of this epoch, the first being 0."""
        return self._shared()[number]

    def __iter__(self) -> Iterator[list[int]]:
        """Give the batches of this epoch."""
        number, processes = self.share
        return iter([batch[number::processes] for batch in self._shared()])

    def __len__(self) -> int:
        """How many batches this epoch has."""
        return len(self._shared())

    def _shared(self) -> list[list[int]]:
        """The batches that have something for every process: all, but for small ones of many processes."""
        return [batch for batch in self._batches() if len(batch) >= self.share[1]]


class ClassBalancedBatchSampler(SeededBatchSampler):
    """Gives class-balanced batches.

    Attributes:
        labels: The label of every record.
        neighbours: Labels that shall be in the batches of each one, from the next epoch on; None: any.
    """

    def __init__(
        self, labels: Sequence[int], *, labels_per_batch: int, records_per_label: int, seed: int
    ) -> None:
        """Take the label of every record of the data set, in its order."""
        self.labels = labels
        self.neighbours: NDArray[np.int64] | None = None
        super().__init__(
            len(labels),
            lambda rng: class_balanced_batches(
                labels,
                labels_per_batch=labels_per_batch,
                records_per_label=records_per_label,
                rng=rng,
                neighbours=self.neighbours,
            ),
            batch_size=labels_per_batch * records_per_label,
            seed=seed,
        )
