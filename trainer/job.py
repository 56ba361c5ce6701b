"""What a run is asked to do, in a form that can be written down, read again and compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from cognate.artifact import sha256_file
from cognate.errors import CognateError
from cognate.records import STDIN
from trainer.kinds import LOSSES, Kind, detect_all
from trainer.losses import check_losses
from trainer.optimization import check_optimization
from trainer.options import TrainingOptions


class Job(pydantic.BaseModel):
    """What a run is asked to do.

    Attributes:
        model: Name, folder or hub id of the model to start from.
        train_data: Files of what it is trained on.
        queries: Records to evaluate with; None where there is no evaluation.
        index: Records that they are searched in.
        out: The checkpoint's folder; None where it lies in the run's own.
        force: Whether a checkpoint that is there is replaced.
        options: The hyper-parameters.
        sha256: Of each data file, by its path.
    """

    model: str
    train_data: list[str]
    queries: str | None
    index: str | None
    out: str | None
    force: bool = False
    options: TrainingOptions
    sha256: dict[str, str]

    @property
    def files(self) -> list[str]:
        """Every data file."""
        return [*self.train_data, *(path for path in (self.queries, self.index) if path)]

    def differences(self, other: "Job") -> list[str]:
        """What another job has otherwise: "epochs is 3 in the run, 5 now" each."""
        mine, others = self._flat(), other._flat()
        found = [
            f"{name} is {mine.get(name)!r} in the run, {others.get(name)!r} now"
            for name in sorted({*mine, *others})
            if mine.get(name) != others.get(name)
        ]
        return found + [
            f"the content of {path} is another"
            for path, digest in self.sha256.items()
            if path in other.files and other.sha256.get(path) != digest
        ]

    def _flat(self) -> dict[str, Any]:
        return {**self.model_dump(exclude={"options", "sha256", "force"}), **self.options.model_dump()}


def make_job(
    model: str,
    train_data: str | Path | Sequence[str | Path],
    *,
    queries: str | Path | None,
    index: str | Path | None,
    out: str | Path | None,
    force: bool = False,
    options: TrainingOptions,
) -> Job:
    """Write down what is asked for, with paths that hold wherever it is read.

    Raises:
        CognateError: One of queries and index is missing, a file is not there, or an option names an
            optimizer, a loss, a miner or an option of theirs that does not exist.
    """
    if (queries is None) != (index is None):
        raise CognateError("evaluation needs both queries and index; give both, or neither")
    given = [train_data] if isinstance(train_data, str | Path) else list(train_data)
    if not given:
        raise CognateError("there is nothing to train on; give at least one file")
    columns = detect_all([str(path) for path in given])
    if columns.kind != "records":
        options = _for_tuples(options, columns.kind)
    check_optimization(options)
    check_losses(options, columns.kind)
    job = Job(
        model=_absolute(model) if Path(model).is_dir() else model,
        train_data=[_absolute(path) for path in given],
        queries=queries and _absolute(queries),
        index=index and _absolute(index),
        out=out and _absolute(out),
        force=force,
        options=options,
        sha256={},
    )
    job.sha256.update(digests(job))
    return job


def _for_tuples(options: TrainingOptions, kind: Kind) -> TrainingOptions:
    """The options, where there are no labels: a sentence-transformers loss, and nothing is mined."""
    asked = options.model_fields_set
    for name in ("val_split", "memory", "mine_negatives"):
        if getattr(options, name):
            raise CognateError(f"{name} needs labels, and the data has {kind}; leave it out")
    if "miner" in asked and options.miner != "none":
        raise CognateError(f"a miner needs labels, and the data has {kind}; leave it out")
    changed: dict[str, object] = {"miner": "none", "miner_options": {}}
    if "loss" not in asked:
        changed["loss"] = LOSSES[kind]
    if "loss_options" not in asked:
        changed["loss_options"] = {}
    return options.model_copy(update=changed)


def digests(job: Job) -> dict[str, str]:
    """The sha256 of each data file as it is now, by its path; of standard input none."""
    return {path: sha256_file(Path(path)) for path in job.files if path != STDIN and Path(path).is_file()}


def _absolute(path: str | Path) -> str:
    return str(path) if str(path) == STDIN else str(Path(path).absolute())
