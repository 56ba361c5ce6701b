"""One training run: records in, evaluations on the way, a checkpoint out."""

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from cognate.artifact import check_destination, installed_versions, publishing
from cognate.checkpoint import TRAINING, CheckpointManifest
from cognate.errors import CognateError
from cognate.evaluation import Evaluation, evaluate
from cognate.records import Record
from cognate.runs import CHECKPOINT, CHECKPOINTS, LOG, TENSORBOARD, RunFolder, get_run
from trainer.averaging import WeightAverage
from trainer.data import TrainingData, read_data
from trainer.encoder import load_encoder
from trainer.evaluations import load_evaluation, save_evaluation
from trainer.job import Job, make_job
from trainer.loggers import check_loggers
from trainer.memory import is_out_of_memory, out_of_memory
from trainer.options import TrainingOptions
from trainer.report import write_report
from trainer.shaping import merge_low_rank, shape
from trainer.similarities import RememberingEncoder, similarities
from trainer.starting import new_run, resumable_job, written_job
from trainer.steps import Progress, Session, find_batch_size, train
from trainer.training_state import TrainingStates, load_state

EXAMPLES = 20
"""Queries whose hits a run keeps to look at, and how many hits of each."""
EXAMPLE_HITS = 5

LOGGED_STEPS = 100
"""Steps of a run that its log tells of; metrics.jsonl has them all."""

log = logging.getLogger("trainer")


@dataclass(frozen=True)
class Run:
    """What a training run left.

    Attributes:
        checkpoint: The folder of the checkpoint.
        evaluations: Before training and after each epoch; empty where no queries and index were given.
        seconds: How long it took; of a resumed run, since it was resumed.
        epoch: The epoch whose weights the checkpoint has.
    """

    checkpoint: Path
    evaluations: list[Evaluation]
    seconds: float
    epoch: int


OnProgress = Callable[[Progress], None]
OnEvaluation = Callable[[int, Evaluation], None]


def fit(
    model: str,
    train_data: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    run: str | None = None,
    runs_dir: str | Path | None = None,
    queries: str | Path | None = None,
    index: str | Path | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
    on_evaluation: OnEvaluation | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **options: Any,
) -> Run:
    """Fine-tune a model so that what belongs together comes near to each other.

    The data's columns say what it is: records (text, label); pairs (query and passage, or two texts that mean
    the same), perhaps with a score; triplets.

    The same seed and data on the same machine give the same checkpoint.

    Args:
        model: ``minilm``, a checkpoint or model folder, or a Hugging Face id.
        train_data: A file, or several of one kind.
        out: The checkpoint's folder; may be left out where there is a run, in whose folder it then lies.
        run: A name, to keep a folder with the log, the metrics as they come, and what resuming needs.
        runs_dir: Where runs live: by default what COGNATE_RUNS says, else ``runs``.
        queries: Records to evaluate with, before training and after each epoch; needs ``index``.
        index: Records that the queries are searched in.
        force: Whether a checkpoint, or a run, that is there is replaced.
        on_progress: Called after each step.
        on_evaluation: Called with the number of epochs done and what was found.
        callbacks: Your own, of transformers: called at every step, epoch and log, and may stop training.
        options: Fields of ``TrainingOptions``.

    Returns:
        The checkpoint and the evaluations.

    Raises:
        CognateError: The data, the options or the destination will not do, or the loss is not finite.
        RunStoppedError: Somebody asked the run to stop.
        pydantic.ValidationError: An option is unknown or out of range.
    """
    settings = TrainingOptions(**options)
    if out is None and run is None:
        raise CognateError("give out, where the checkpoint shall be, or run, a name")
    if out is not None:
        check_destination(Path(out), CheckpointManifest.KIND, force=force)
    check_loggers(settings.loggers, in_run=run is not None)
    job = make_job(model, train_data, queries=queries, index=index, out=out, force=force, options=settings)
    if run is None:
        return _Fitting(job, read_data(job), None, on_progress, on_evaluation, callbacks).run()
    folder, data = new_run(job, run, runs_dir)
    with _running(folder):
        return _Fitting(job, data, folder, on_progress, on_evaluation, callbacks).run()


def resume(
    name: str,
    *,
    runs_dir: str | Path | None = None,
    expected: Job | None = None,
    on_progress: OnProgress | None = None,
    on_evaluation: OnEvaluation | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Run:
    """Go on with a run that was stopped, failed or was never started, from its last training state.

    With the same data on the same machine, what comes out is what the run would have given had it never
    been stopped.

    Args:
        name: The run's.
        runs_dir: Where runs live.
        expected: What the run is thought to do; it is refused where it does something else.
        on_progress: Called after each step.
        on_evaluation: Called with the number of epochs done and what was found, those of before left out.
        callbacks: As ``fit``; what they knew before is not kept.

    Raises:
        CognateError: There is no such run, it is running or finished, or its data or settings changed.
        RunStoppedError: Somebody asked the run to stop.
    """
    folder = get_run(name, runs_dir)
    job = resumable_job(folder, expected)
    with _running(folder):
        return _Fitting(job, read_data(job), folder, on_progress, on_evaluation, callbacks).run()


def join(name: str, *, runs_dir: str | Path | None = None) -> None:
    """Take part in a run as one of several processes, not the first: train, measure and write nothing.

    Raises:
        CognateError: There is no such run, or training ended early.
    """
    folder = get_run(name, runs_dir)
    job = written_job(folder)
    # What there is to say, the first process says.
    log.setLevel(logging.CRITICAL)
    _Fitting(job, read_data(job), folder, None, None).join()


@contextlib.contextmanager
def _running(folder: RunFolder) -> Iterator[None]:
    """Be the run's process, and write what is logged to its log."""
    with folder.running():
        handler = logging.FileHandler(folder.folder / LOG, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        level, propagate = log.level, log.propagate
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            # Ctrl-C or SIGTERM: what somebody wanted needs no traceback.
            log.warning("interrupted; go on with it: cognate train --resume %s", folder.name)
            raise
        except CognateError as error:
            # Whoever called is told by the error itself.
            log.propagate = False
            log.error("%s", error)  # noqa: TRY400 - A user's mistake needs no traceback.
            raise
        except BaseException as error:
            log.propagate = False
            log.exception("ended by %s", type(error).__name__)
            raise
        else:
            log.info("finished")
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            log.propagate = propagate
            handler.close()


class _Fitting:
    """One call of ``fit`` or ``resume``: the model, what is measured of it, and where it is written."""

    def __init__(
        self,
        job: Job,
        data: TrainingData,
        folder: RunFolder | None,
        on_progress: OnProgress | None,
        on_evaluation: OnEvaluation | None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.job = job
        self.data = data
        self.folder = folder
        self.on_progress = on_progress
        self.on_evaluation = on_evaluation
        self.callbacks = callbacks
        place = job.out or (folder and folder.folder / CHECKPOINT)
        assert place  # noqa: S101 - ``fit`` asks for one of them.
        self.out = Path(place)
        self.evaluations: list[Evaluation] = []
        self.losses: list[Progress] = []

    def run(self) -> Run:
        """Train, and publish the checkpoint."""
        try:
            return self._run()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise CognateError(out_of_memory(self.job.options, self.encoder.model.device)) from error

    def _run(self) -> Run:
        started = time.monotonic()
        settings = self.job.options
        set_seed(settings.seed)
        self.encoder = load_encoder(self.job.model)
        log.info("%s, trained on %s", self.job.model, self.data.summary)
        self._warn_of_labels()
        states = resumed = None
        if self.folder is not None:
            states = TrainingStates(self.folder.folder / CHECKPOINTS, settings.checkpoints_kept)
            if (last := states.last()) is not None:
                resumed = last, load_state(last)
            self._restore(None if resumed is None else resumed[1]["position"])
        before = self._evaluate() if resumed is None else {}
        with tempfile.TemporaryDirectory(prefix="cognate-best-") as scratch:
            self.epoch = self._train(
                on_progress=self._tell_progress,
                on_epoch=self._evaluate,
                scratch=states.folder if states else Path(scratch),
                stop_asked=self.folder.stop_asked if self.folder else lambda: False,
                states=states,
                resumed=resumed,
                name=self.folder.name if self.folder else self.out.name,
                board=self.folder and self.folder.folder / TENSORBOARD,
                before=before,
                callbacks=self.callbacks,
            )
        merge_low_rank(self.encoder.model)
        self._publish(started)
        return Run(
            checkpoint=self.out,
            evaluations=self.evaluations,
            seconds=time.monotonic() - started,
            epoch=self.epoch,
        )

    def join(self) -> None:
        """Train, and leave everything else to the first process."""
        assert self.folder is not None  # noqa: S101
        settings = self.job.options
        set_seed(settings.seed)
        self.encoder = load_encoder(self.job.model)
        states = TrainingStates(self.folder.folder / CHECKPOINTS, settings.checkpoints_kept)
        last = states.last()
        self._train(
            on_progress=lambda progress: None,
            on_epoch=dict,
            scratch=states.folder,
            stop_asked=lambda: False,
            states=states,
            resumed=None if last is None else (last, load_state(last)),
        )

    def _train(self, **session: Any) -> int:
        settings, model = self.job.options, self.encoder.model
        shape(model, settings)
        if settings.batch_size == "auto":
            # A run goes on with what was found for it.
            known = session["resumed"] and session["resumed"][1]["position"].get("batch_size")
            size = known or find_batch_size(model, self.data, settings)
            settings = settings.model_copy(update={"batch_size": size})
            self.job = self.job.model_copy(update={"options": settings})
        average = WeightAverage(
            model, pretrained_weight=settings.pretrained_weight, last=settings.average_last
        )
        return train(model, self.data, settings, Session(average=average, **session))

    def _warn_of_labels(self) -> None:
        """Say what of the data will not do what was hoped."""
        if self.data.dropped:
            log.warning(
                "%d records are alone in their label, and left out: there is nothing to bring them near to",
                self.data.dropped,
            )
        if self.data.tuples and self.data.tuples.apart:
            log.warning(
                "%d pairs are marked 0, and left out: their texts do not belong together; call that column "
                "score to train on both",
                self.data.tuples.apart,
            )
        settings, labels = self.job.options, self.data.labels
        if self.data.tuples or settings.batch_size == "auto" or settings.sampler == "random":
            return
        if labels < settings.labels_per_batch:
            log.warning(
                "the data has %d labels, and a batch wants %d (batch_size %d / records_per_label %d), so "
                "batches are smaller; raise records_per_label, or lower batch_size",
                labels,
                settings.labels_per_batch,
                settings.batch_size,
                settings.records_per_label,
            )

    def _publish(self, started: float) -> None:
        with publishing(self.out, CheckpointManifest.KIND, force=self.job.force) as partial:
            self.encoder.model.save(str(partial), create_model_card=False)
            training = self._training(time.monotonic() - started)
            (partial / TRAINING).write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
            CheckpointManifest.write(partial, model=self.job.model)
        if self.folder is None:
            return
        try:
            write_report(self.folder, self.job, self.data, training)
        except CognateError as error:
            log.warning("there is no report, for %s; the checkpoint is whole", error)

    def _training(self, seconds: float) -> dict[str, object]:
        """What training.json says."""
        job = self.job
        first, *others = job.train_data
        given = {"train": first, "queries": job.queries, "index": job.index}
        given |= {f"train {number}": path for number, path in enumerate(others, 2)}
        return {
            "model": job.model,
            "data": {
                name: {"path": path, "sha256": job.sha256[path]}
                for name, path in given.items()
                if path in job.sha256
            },
            "kind": self.data.tuples.kind if self.data.tuples else "records",
            "records": len(self.data.rows),
            "labels": self.data.labels,
            "records_dropped_as_alone_in_their_label": self.data.dropped,
            "options": job.options.model_dump(),
            "epoch": self.epoch,
            "evaluations": [{"epoch": n, **e.as_json()} for n, e in enumerate(self.evaluations)],
            "losses": [asdict(progress) for progress in self.losses],
            "device": str(self.encoder.model.device),
            "seconds": round(seconds, 3),
            "versions": installed_versions("cognate", *CheckpointManifest.LIBRARIES),
        }

    def _tell_progress(self, progress: Progress) -> None:
        self.losses.append(progress)
        if progress.step % max(1, progress.steps // LOGGED_STEPS) == 0:
            log.info("step %d of %d, loss %.4f", progress.step, progress.steps, progress.loss or 0.0)
        if self.folder:
            self.folder.add_metrics({"kind": "step", **asdict(progress)})
        if self.on_progress:
            self.on_progress(progress)

    def _evaluate(self) -> dict[str, float]:
        if self.data.searched is None:
            return {}
        queries, index = self.data.searched
        encoder = RememberingEncoder(self.encoder)
        evaluation = evaluate(encoder, queries, index, k=self.job.options.k)
        epoch = len(self.evaluations)
        self.evaluations.append(evaluation)
        log.info("after epoch %d: average_precision %.4f", epoch, evaluation.metrics["average_precision"])
        if self.folder:
            step = self.losses[-1].step if self.losses else 0
            evaluated = [queries[row] for row in evaluation.query_rows]
            found = similarities(evaluated, index, encoder.vectors["query"], encoder.vectors["passage"])
            path = self.folder.evaluation_file(epoch)
            path.parent.mkdir(exist_ok=True)
            save_evaluation(evaluation, found, path)
            self.folder.add_examples(_examples(queries, index, evaluation, epoch))
            self.folder.add_metrics(
                {"kind": "evaluation", "epoch": epoch, "step": step, **evaluation.as_json()}
            )
        if self.on_evaluation:
            self.on_evaluation(epoch, evaluation)
        return evaluation.metrics

    def _restore(self, position: dict[str, int] | None) -> None:
        """Take up what was measured up to a training state, and drop what was measured after it."""
        assert self.folder is not None  # noqa: S101
        step, epochs = (position["step"], position["epochs"]) if position else (-1, -1)

        def wanted(line: Any) -> bool:
            # An example has no step; of an epoch that was not ended there is none.
            return bool(line.get("step", 0) <= step and ("loss" in line or line["epoch"] <= epochs))

        self.folder.keep(wanted)
        for line in self.folder.metrics():
            if line["kind"] == "step":
                self.losses.append(Progress(line["step"], line["steps"], line["epoch"], line["loss"]))
            else:
                self.evaluations.append(load_evaluation(self.folder.evaluation_file(line["epoch"])))
        if position:
            log.info("going on after step %d", step)


def _examples(
    queries: Sequence[Record], index: Sequence[Record], evaluation: Evaluation, epoch: int
) -> list[dict[str, object]]:
    """The first hits of the first queries, as lines of examples.jsonl."""
    lines: list[dict[str, object]] = []
    for number, row in enumerate(evaluation.query_rows[:EXAMPLES].tolist()):
        query = queries[row]
        hits = zip(evaluation.rows[number].tolist(), evaluation.scores[number].tolist(), strict=True)
        lines.append(
            {
                "epoch": epoch,
                "row": row,
                "query": query.text,
                "label": query.label,
                "hits": [
                    {"text": index[hit].text, "label": index[hit].label, "score": round(score, 4)}
                    for hit, score in hits
                    if hit >= 0
                ][:EXAMPLE_HITS],
            }
        )
    return lines
