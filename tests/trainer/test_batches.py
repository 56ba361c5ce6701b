"""Class-balanced batches: every record once, never alone, few of one label."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.batches import ClassBalancedBatchSampler, class_balanced_batches

SIZES = st.lists(st.integers(2, 9), min_size=2, max_size=40)


@given(SIZES, st.integers(2, 8), st.integers(2, 5), st.integers(0, 2**16), st.booleans())
def test_every_record_has_a_partner_in_its_batch_and_no_label_fills_it(
    sizes: list[int], labels_per_batch: int, records_per_label: int, seed: int, mined: bool
) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    neighbours = np.random.default_rng(seed).integers(-1, len(sizes), size=(len(sizes), 3))
    batches = list(
        class_balanced_batches(
            labels,
            labels_per_batch=labels_per_batch,
            records_per_label=records_per_label,
            rng=np.random.default_rng(seed),
            neighbours=neighbours if mined else None,
        )
    )
    seen = Counter(position for batch in batches for position in batch)
    assert set(seen.values()) <= {1}
    for batch in batches:
        counts = Counter(labels[position] for position in batch)
        assert 2 <= len(counts) <= labels_per_batch
        assert min(counts.values()) >= 2
        # One more than asked for, where a record would be alone otherwise.
        assert max(counts.values()) <= max(records_per_label, 3)


def test_every_record_is_seen_in_an_epoch_where_labels_are_many() -> None:
    labels = [label for label in range(200) for _ in range(2 + label % 4)]
    sampler = ClassBalancedBatchSampler(labels, labels_per_batch=8, records_per_label=4, seed=3)
    assert sorted(position for batch in sampler for position in batch) == list(range(len(labels)))
    assert len(sampler) == len(list(sampler))


def test_epochs_differ_and_the_same_seed_repeats_them() -> None:
    labels = [label for label in range(50) for _ in range(3)]

    def epochs(seed: int) -> list[list[list[int]]]:
        sampler = ClassBalancedBatchSampler(labels, labels_per_batch=5, records_per_label=3, seed=seed)
        drawn = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            drawn.append(list(sampler))
        return drawn

    first = epochs(1)
    assert first == epochs(1)
    assert first[0] != first[1]
    assert first != epochs(2)


def test_a_label_shares_its_batches_with_its_neighbours() -> None:
    labels = [label for label in range(64) for _ in range(4)]
    sampler = ClassBalancedBatchSampler(labels, labels_per_batch=8, records_per_label=4, seed=1)
    # Two and two belong together.
    sampler.neighbours = np.arange(64).reshape(64, 1) ^ 1
    batches = [{labels[position] for position in batch} for batch in sampler]
    assert len(batches) == 8
    assert all(label ^ 1 in batch for batch in batches for label in batch)
