"""What came of a run, as one page that needs no network: ``report.html`` in the run's folder."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from cognate.checkpoint import TRAINING
from cognate.errors import CognateError
from cognate.evaluation import Evaluation
from cognate.metrics import METRICS
from cognate.records import Record
from cognate.runs import REPORT, RunFolder
from trainer.bootstrap import RESAMPLES, bootstrap_intervals
from trainer.data import TrainingData, read_data
from trainer.evaluations import load_evaluation, load_similarities
from trainer.job import Job, digests
from trainer.options import TrainingOptions
from trainer.plots import cosines_svg, loss_svg, metrics_svg
from trainer.starting import written_job

QUERIES = 10
"""Queries that are shown of those that improved most, and of those that worsened most."""

HITS = 5
"""Hits that are shown of each, before and after."""


@dataclass(frozen=True)
class Hit:
    """A hit of a query that is shown.

    Attributes:
        text: Of the record.
        score: Its cosine.
        relevant: Whether its label is the query's.
    """

    text: str
    score: float
    relevant: bool


@dataclass(frozen=True)
class Change:
    """A query whose average precision changed.

    Attributes:
        query: Its text.
        label: Its label.
        precisions: Its average precision, before and after.
        hits: Its first hits, before and after.
    """

    query: str
    label: str | None
    precisions: tuple[float, float]
    hits: tuple[list[Hit], list[Hit]]


def rewrite_report(folder: RunFolder) -> Path:
    """Write the report of a run that is finished once more.

    Raises:
        CognateError: The run is not finished, or its data or its checkpoint is not there as it was.
    """
    checkpoint = folder.checkpoint
    if checkpoint is None:
        raise CognateError(
            f"run {folder.name} has no report: it is {folder.status().state}, or its checkpoint was moved"
        )
    job = written_job(folder)
    now = job.model_copy(update={"sha256": digests(job)})
    if changed := job.differences(now):
        left = (
            f"; the one from before is {folder.folder / REPORT}" if (folder.folder / REPORT).exists() else ""
        )
        raise CognateError(f"the report cannot be written again, for {'; '.join(changed)}{left}")
    try:
        training = json.loads((checkpoint / TRAINING).read_bytes())
    except (OSError, ValueError) as error:
        raise CognateError(f"{checkpoint / TRAINING} cannot be read: {error}") from None
    return write_report(folder, job, read_data(job), training)


def write_report(folder: RunFolder, job: Job, data: TrainingData, training: Mapping[str, Any]) -> Path:
    """Write the report of a run.

    Args:
        folder: The run's, with its metrics and what was found for each query.
        job: What it was asked to do.
        data: What it read.
        training: What training.json says.

    Raises:
        CognateError: The report cannot be written.
    """
    # batch_size=auto is a number by now.
    job = job.model_copy(update={"options": TrainingOptions(**training["options"])})
    epochs = [line["epoch"] for line in training["evaluations"]]
    found: dict[str, Any] = {}
    if data.searched is not None and epochs:
        paths = [folder.evaluation_file(epoch) for epoch in (0, training["epoch"])]
        before, after = map(load_evaluation, paths)
        cosines = [kept for path in paths if (kept := load_similarities(path))]
        found = {
            "metrics_svg": metrics_svg([line["metrics"] for line in training["evaluations"]]),
            "metrics": _compared(before, after),
            "evaluation": after,
            "changes": _changes(*data.searched, before, after),
            # Runs of before they were kept have none.
            "cosines_svg": cosines_svg(*cosines) if len(cosines) == 2 else None,
        }
    page = _template().render(
        name=folder.name,
        status=folder.status(),
        training=training,
        command=reproducing_command(job, f"{folder.name[:90]}-again"),
        loss_svg=loss_svg([(line["step"], line["loss"]) for line in training["losses"]]),
        summary=_summary(data),
        resamples=RESAMPLES,
        **found,
    )
    return folder.write_report(page)


def reproducing_command(job: Job, name: str) -> str:
    """The command that does what a run did, for a shell, with every option that is not its default.

    Args:
        job: What the run was asked to do.
        name: Of the run that it makes.
    """
    words = ["cognate", "train", *job.train_data, "--model", job.model]
    for flag in ("queries", "index"):
        if path := getattr(job, flag):
            words += [f"--{flag}", path]
    options, defaults = job.options.model_dump(), TrainingOptions().model_dump()
    # Of another loss or miner they are other ones.
    named = TrainingOptions(loss=job.options.loss, miner=job.options.miner)
    defaults |= named.model_dump(include={"loss_options", "miner_options"})
    for option, value in options.items():
        if value != defaults[option]:
            words += ["--set", f"{option}={_as_value(value)}"]
    return shlex.join([*words, "--run", name])


def _as_value(value: object) -> str:
    """A value as ``--set`` reads it: JSON, or a text that is none."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def _template() -> jinja2.Template:
    # The texts are the user's, and anything may be in them.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html")


def _summary(data: TrainingData) -> dict[str, str]:
    """What was trained on, in numbers."""
    lengths = sorted(len(text) for row in data.rows for text in row)
    summary = {"trained on": data.summary}
    if data.dropped:
        summary["left out"] = f"{data.dropped} records that are alone in their label"
    if data.records:
        sizes = sorted(Counter(record.label for record in data.records).values())
        summary["records of a label"] = f"{sizes[0]} to {sizes[-1]}, half of them {_median(sizes)} at most"
    summary["characters of a text"] = (
        f"{lengths[0]} to {lengths[-1]}, half of them {_median(lengths)} at most"
    )
    return summary


def _median(ordered: list[int]) -> int:
    return ordered[(len(ordered) - 1) // 2]


def _compared(before: Evaluation, after: Evaluation) -> dict[str, list[tuple[float, float, float]]]:
    """Of each metric its mean and the ends of its interval: before, after, and of the gain."""
    table = [
        (before.per_query[name], after.per_query[name], after.per_query[name] - before.per_query[name])
        for name in METRICS
    ]
    values = np.stack([column for columns in table for column in columns], axis=1)
    lower, upper = bootstrap_intervals(values)
    cells = list(zip(values.mean(axis=0).tolist(), lower.tolist(), upper.tolist(), strict=True))
    return {name: cells[3 * number : 3 * number + 3] for number, name in enumerate(METRICS)}


def _changes(
    queries: list[Record], index: list[Record], before: Evaluation, after: Evaluation
) -> dict[str, list[Change]]:
    """The queries that improved most, and those that worsened most, by their average precision."""
    precisions = [evaluation.per_query["average_precision"] for evaluation in (before, after)]
    gains = precisions[1] - precisions[0]
    order = np.argsort(-gains, kind="stable")

    def change(number: int) -> Change:
        query = queries[int(after.query_rows[number])]
        return Change(
            query.text,
            query.label,
            (float(precisions[0][number]), float(precisions[1][number])),
            (_hits(query, index, before, number), _hits(query, index, after, number)),
        )

    return {
        "improved": [change(number) for number in order[:QUERIES] if gains[number] > 0],
        "worsened": [change(number) for number in order[::-1][:QUERIES] if gains[number] < 0],
    }


def _hits(query: Record, index: list[Record], evaluation: Evaluation, number: int) -> list[Hit]:
    found = zip(evaluation.rows[number].tolist(), evaluation.scores[number].tolist(), strict=True)
    return [Hit(index[row].text, score, index[row].label == query.label) for row, score in found if row >= 0][
        :HITS
    ]
