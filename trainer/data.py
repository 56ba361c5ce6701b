"""What is trained on and evaluated with, read and checked before any model is loaded."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from cognate.errors import CognateError
from cognate.evaluation import read_queries_and_index
from cognate.records import Record, read_records
from trainer.job import Job
from trainer.kinds import Tuples, detect_all, read_tuples


@dataclass(frozen=True)
class TrainingData:
    """What a run reads.

    Attributes:
        records: What it is trained on, where that has labels; each has another of its label.
        dropped: How many had none, and were left out.
        tuples: What it is trained on, where that has none; else None.
        searched: The queries and the records they are searched in; None where nothing is evaluated.
    """

    records: list[Record]
    dropped: int
    searched: tuple[list[Record], list[Record]] | None
    tuples: Tuples | None = None

    @property
    def labels(self) -> int:
        """How many labels the records have."""
        return len({record.label for record in self.records})

    @property
    def summary(self) -> str:
        """What there is, in a few words."""
        if self.tuples:
            return f"{len(self.rows)} {self.tuples.kind}"
        return f"{len(self.rows)} records of {self.labels} labels"

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The texts of each record, pair or triplet."""
        return self.tuples.texts if self.tuples else [(record.text,) for record in self.records]


def read_data(job: Job) -> TrainingData:
    """Read all that a job names.

    Raises:
        CognateError: A file cannot be read, or cannot be trained on, or nothing is evaluated and a metric
            is to be monitored.
    """
    options = job.options
    if options.monitored and options.monitor != "loss" and job.queries is None and not options.val_split:
        raise CognateError(
            f"there is no {options.monitor} to monitor without evaluation; give queries and index, or "
            "val_split, or monitor loss"
        )
    searched = None
    if job.queries is not None and job.index is not None:
        searched = read_queries_and_index(job.queries, job.index)
    if detect_all(job.train_data).kind != "records":
        return TrainingData([], 0, searched, read_tuples(job.train_data))
    records = [record for path in job.train_data for record in read_records(path, require_label=True)]
    sizes = Counter(record.label for record in records)
    kept = [record for record in records if sizes[record.label] > 1]
    labels = len({record.label for record in kept})
    if labels < 2:
        source = " and ".join(job.train_data)
        raise CognateError(
            f"{source} has {len(sizes)} labels, {labels} of them with two records or more; training needs at "
            "least two such labels, to tell what belongs together from what does not"
        )
    dropped = len(records) - len(kept)
    if share := options.val_split:
        if job.queries is not None:
            raise CognateError("val_split makes what queries and index give; leave out one of the two")
        kept, apart = _split(kept, share, options.seed)
        searched = apart, apart
    return TrainingData(kept, dropped, searched)


def _split(records: list[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Leave out the records of a share of the labels, one at least, and tell both apart."""
    labels = list(dict.fromkeys(record.label for record in records))
    count = max(1, round(len(labels) * share))
    if len(labels) - count < 2:
        raise CognateError(
            f"val_split leaves {len(labels) - count} of {len(labels)} labels to train on, and two are "
            "needed; make it smaller"
        )
    drawn = np.random.default_rng(seed).permutation(len(labels))[:count]
    apart = {labels[number] for number in drawn}
    return (
        [record for record in records if record.label not in apart],
        [record for record in records if record.label in apart],
    )
