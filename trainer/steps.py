"""The steps of training: sentence-transformers' trainer, watched, saved on the way and gone on with."""

import contextlib
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import distributed
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from cognate.errors import CognateError
from cognate.runs import RunStoppedError
from trainer.averaging import WeightAverage
from trainer.batch_size import largest_batch
from trainer.batches import ClassBalancedBatchSampler, SeededBatchSampler, distinct_batches, random_batches
from trainer.compilation import compile_transformer
from trainer.data import TrainingData
from trainer.dropout import quick_dropout
from trainer.embedding_gradients import gathered_gradients
from trainer.encoder import TorchEncoder
from trainer.hard_negatives import confusable_labels, no_neighbours
from trainer.loggers import logged
from trainer.losses import MetricLoss, NotFiniteError, TupleLoss, make_loss, make_miner, make_tuple_loss
from trainer.memory import keeping_freed_memory, out_of_memory
from trainer.monitoring import Monitor
from trainer.optimization import hold_within_epochs, make_optimizer
from trainer.options import TrainingOptions
from trainer.processes import agreed_flag, agreed_metrics, agreed_table, is_first, share
from trainer.training_state import TrainingStates, random_state, set_random_state

MODEL = "model."
PATIENCE_SECONDS = 6 * 3600
"""How long processes wait for the first one, which evaluates and saves."""

BATCHES_OF_AN_EPOCH = 10
"""What batch_size=auto leaves an epoch, at least: with a few steps nothing is learnt."""

TUPLE_COLUMNS = ("anchor", "positive", "negative")

log = logging.getLogger("trainer")


@dataclass(frozen=True)
class Progress:
    """How far training has come.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        epoch: Epochs done, a fraction.
        loss: Mean of the last steps; None before the first.
    """

    step: int
    steps: int
    epoch: float
    loss: float | None


@dataclass(frozen=True)
class Session:
    """What training tells, asks and saves on its way.

    Attributes:
        on_progress: Called after each step.
        on_epoch: Called after each epoch, with the average in place of the weights; gives its metrics.
        average: Of the weights.
        scratch: A folder for the weights of the best epoch.
        stop_asked: Whether to stop after this step.
        states: Where training states are saved; None: nowhere.
        resumed: The training state to go on from, its folder and what is in it; None: from the beginning.
        name: Of the run, for loggers.
        board: The folder for TensorBoard; None where nothing goes there.
        before: The metrics before training; none where it is gone on with.
        callbacks: The user's own.
    """

    on_progress: Callable[[Progress], None]
    on_epoch: Callable[[], dict[str, float]]
    average: WeightAverage
    scratch: Path
    stop_asked: Callable[[], bool]
    states: TrainingStates | None = None
    resumed: tuple[Path, dict[str, Any]] | None = None
    name: str | None = None
    board: Path | None = None
    before: Mapping[str, float] = field(default_factory=dict)
    callbacks: Sequence[TrainerCallback] = ()


def train(model: SentenceTransformer, data: TrainingData, settings: TrainingOptions, session: Session) -> int:
    """Train the model in place.

    Returns:
        The epoch whose weights it has at the end.

    Raises:
        CognateError: The loss is not finite, or a training state cannot be saved.
        RunStoppedError: The session asked to stop.
    """
    max_length = _limit_length(model, settings)
    if settings.precision == "fp16" and model.device.type != "cuda":
        raise CognateError("precision=fp16 needs a CUDA GPU; here bf16 and fp32 will do")
    if settings.compile:
        compile_transformer(model)
    loss, dataset, sampler = (_of_tuples if data.tuples else _of_labels)(model, data, settings)
    watcher = _Watcher(settings, session, loss, data, sampler)
    with tempfile.TemporaryDirectory(prefix="cognate-train-") as scratch:
        arguments = _Arguments(
            output_dir=scratch,
            run_options=settings.model_dump(),
            run_name=session.name,
            logging_dir=str(session.board),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.rows_per_batch,
            learning_rate=settings.learning_rate,
            warmup_ratio=settings.warmup_ratio,
            warmup_steps=settings.warmup_steps or 0,
            lr_scheduler_type=settings.scheduler,
            lr_scheduler_kwargs=settings.scheduler_options,
            gradient_accumulation_steps=settings.gradient_accumulation,
            max_grad_norm=settings.max_gradient_norm,
            prompts=_prompts(settings, data),
            gradient_checkpointing=settings.gradient_checkpointing,
            # The other kind loses the gradients of a frozen embedding's layers.
            gradient_checkpointing_kwargs={"use_reentrant": False},
            seed=settings.seed,
            save_strategy="no",
            fp16=settings.precision == "fp16",
            dataloader_num_workers=settings.num_workers,
            report_to=[*settings.loggers] or "none",
            logging_steps=1,
            disable_tqdm=True,
            # A batch goes through the model in parts, and none may write to what another has saved.
            ddp_broadcast_buffers=False,
            # Else accelerate looks for GPUs alone, and leaves each process to itself.
            use_cpu=distributed.is_torchelastic_launched() and model.device.type == "cpu",
            ddp_timeout=PATIENCE_SECONDS,
            dataloader_pin_memory=model.device.type == "cuda",
            batch_sampler=lambda dataset, **_: sampler,
        )
        sampler.share = share()
        if data.tuples and sampler.share[1] > 1:
            raise CognateError("several processes train on labelled records only; use one, or give labels")
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            loss=loss,
            callbacks=[watcher, *session.callbacks],
            optimizers=(make_optimizer(settings, model, _own(loss)), None),
        )
        # It prints the loss on standard output, which is for results.
        trainer.remove_callback(PrinterCallback)
        # Else the losses of batches that make one step would be added up, not averaged.
        trainer.model_accepts_loss_kwargs = False
        trainer.watcher = watcher
        trainer.scheduler_step = settings.scheduler_step
        watcher.tell_loggers = trainer.log
        trainer.states = session.states
        trainer.resumed = session.resumed[1] if session.resumed else None
        try:
            alone_on_cpu = model.device.type == "cpu" and sampler.share[1] == 1 and not settings.compile
            gradients = gathered_gradients(model) if alone_on_cpu else contextlib.nullcontext()
            with keeping_freed_memory(), quick_dropout(), gradients, logged(settings.loggers):
                trainer.run(session.resumed[0] if session.resumed else None)
        except NotFiniteError as error:
            texts = [text for row in sampler.batch(watcher.batches) for text in data.rows[row]]
            raise CognateError(
                f"{error} in step {trainer.state.global_step + 1}, batch {watcher.batches + 1} of epoch "
                f"{watcher.epochs + 1} ({len(texts)} texts, the first {texts[0][:80]!r}), so training was "
                f"stopped{_left(session.states)}; try a smaller --learning-rate, or look for damaged texts "
                "with cognate data check"
            ) from error
    model.max_seq_length = max_length
    if watcher.stopping:
        raise RunStoppedError(
            f"the run was asked to stop, and did after step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}; cognate train --resume goes on with it"
        )
    best = watcher.monitor.best_epoch
    if not is_first():
        return watcher.epochs
    if settings.keep_best and best is not None:
        model.load_state_dict(load_file(_best(session.scratch, best)))
        return best
    session.average.apply()
    return watcher.epochs


Loss = MetricLoss | TupleLoss


def find_batch_size(model: SentenceTransformer, data: TrainingData, settings: TrainingOptions) -> int:
    """Find how many records, the longest ones, a batch can have; the model and the dice stay as they are.

    It leaves every epoch some batches, however much memory there is.

    Raises:
        CognateError: Not even a small batch fits, or there are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CognateError("batch_size=auto is found by one process; give a number to train with several")
    multiple = 4 if data.tuples else settings.records_per_label
    least = max(4, 2 * multiple)
    dice, max_length = random_state(), _limit_length(model, settings)
    trial = settings.model_copy(update={"batch_size": least})
    loss, _, _ = (_of_tuples if data.tuples else _of_labels)(model, data, trial)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    longest = sorted(data.rows, key=lambda row: sum(map(len, row)), reverse=True)

    def step(size: int) -> None:
        rows = [longest[number % len(longest)] for number in range(size)]
        features = [
            {
                name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                for name, value in model.preprocess(list(texts)).items()
            }
            for texts in zip(*rows, strict=True)
        ]
        labels: torch.Tensor | None
        if data.tuples is None:
            labels = torch.arange(size) // settings.records_per_label % data.labels
        else:
            labels = torch.linspace(0, 1, size) if data.tuples.scores else None
        loss(features, None if labels is None else labels.to(model.device)).backward()
        model.zero_grad(set_to_none=True)

    most = len(data.rows) // BATCHES_OF_AN_EPOCH
    found = largest_batch(step, model, least=least, most=most, multiple=multiple)
    model.max_seq_length = max_length
    set_random_state(dice)
    if found is None:
        raise CognateError(
            f"not even a batch of {least} records fits: {out_of_memory(settings, model.device)}"
        )
    log.info("batch_size auto: %d, of %d at most", found, max(least, most))
    return found


def _limit_length(model: SentenceTransformer, settings: TrainingOptions) -> int | None:
    """Let the model read as much of a text as the options say, and give what it read before."""
    before: int | None = model.max_seq_length
    if settings.max_length is not None:
        model.max_seq_length = min(settings.max_length, before or settings.max_length)
    return before


def _of_labels(
    model: SentenceTransformer, data: TrainingData, settings: TrainingOptions
) -> tuple[Loss, Dataset, SeededBatchSampler]:
    """The loss, the data set and the batches of labelled records."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(r.label for r in data.records))}
    labels = [numbers[record.label] for record in data.records]
    loss = MetricLoss(
        model,
        make_loss(
            settings.loss,
            settings.loss_options,
            labels=len(numbers),
            dimension=model.get_embedding_dimension() or 0,
        ),
        make_miner(settings.miner, settings.miner_options),
        bf16=settings.precision == "bf16",
        dimensions=settings.matryoshka,
        memory=settings.memory,
    ).to(model.device)
    size = settings.rows_per_batch
    if settings.sampler == "random":
        sampler = SeededBatchSampler(
            len(labels),
            lambda rng: random_batches(len(labels), batch_size=size, rng=rng),
            batch_size=size,
            seed=settings.seed,
        )
    else:
        sampler = ClassBalancedBatchSampler(
            labels,
            labels_per_batch=settings.labels_per_batch,
            records_per_label=settings.records_per_label,
            seed=settings.seed,
        )
    texts = [record.text for record in data.records]
    return loss, Dataset.from_dict({"text": texts, "label": labels}), sampler


def _of_tuples(
    model: SentenceTransformer, data: TrainingData, settings: TrainingOptions
) -> tuple[Loss, Dataset, SeededBatchSampler]:
    """The loss, the data set and the batches of pairs or triplets."""
    assert data.tuples  # noqa: S101 - Else there are labels.
    tuples, kind = data.tuples, data.tuples.kind
    made = make_tuple_loss(settings.loss, settings.loss_options, kind, model, settings.matryoshka)
    columns: dict[str, Any] = dict(
        zip(TUPLE_COLUMNS, map(list, zip(*tuples.texts, strict=True)), strict=False)
    )
    if tuples.scores:
        columns["label"] = tuples.scores
    size = settings.rows_per_batch

    def draw(rng: np.random.Generator) -> Iterator[list[int]]:
        # Of scored pairs none is another's negative, so they may share a text.
        if tuples.scores:
            return random_batches(len(tuples.texts), batch_size=size, rng=rng)
        return distinct_batches(tuples.texts, batch_size=size, rng=rng)

    sampler = SeededBatchSampler(len(tuples.texts), draw, batch_size=size, seed=settings.seed)
    if not len(sampler):
        raise CognateError(
            f"there is no batch to train on: all {len(tuples.texts)} {kind} share a text with each other, "
            "and in a batch no text occurs twice, as each row's are the others' negatives"
        )
    loss = TupleLoss(made, bf16=settings.precision == "bf16").to(model.device)
    return loss, Dataset.from_dict(columns), sampler


def _prompts(settings: TrainingOptions, data: TrainingData) -> str | dict[str, str] | None:
    """What is put before the texts of each column."""
    prompts = settings.prompts or {}
    passage = prompts.get("passage")
    if data.tuples is None:
        return passage
    sides = {"anchor": prompts.get("query"), "positive": passage, "negative": passage}
    return {column: prompt for column, prompt in sides.items() if prompt}


def _own(loss: Loss) -> list[torch.nn.Parameter]:
    """The weights of a loss that are not the model's."""
    of_model = {id(parameter) for parameter in loss.model.parameters()}
    return [parameter for parameter in loss.parameters() if id(parameter) not in of_model]


def _best(scratch: Path, epoch: int) -> Path:
    return scratch / f"best-{epoch}.safetensors"


def _left(states: TrainingStates | None) -> str:
    last = states.last() if states else None
    return f" and the state of {last.name} kept" if last else ""


class _NoModelCard(TrainerCallback):
    """Stands where sentence-transformers collects a model card: training.json says more, at no cost."""

    def __init__(self, default_args_dict: object) -> None:
        super().__init__()


@dataclass
class _Arguments(SentenceTransformerTrainingArguments):
    """What sentence-transformers' trainer is told; loggers write down the run's options instead."""

    run_options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return self.run_options


class _Trainer(SentenceTransformerTrainer):
    """Saves and loads its state our way: whole or absent, and without pickle.

    transformers' own checkpoints are pickles, in part, of what ``torch.save`` writes.
    """

    model_card_callback_class = _NoModelCard  # type: ignore[assignment]
    watcher: "_Watcher"
    states: TrainingStates | None
    resumed: dict[str, Any] | None
    scheduler_step: Literal["batch", "epoch"]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Let the learning rate change when the options say."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.scheduler_step == "epoch":
            hold_within_epochs(
                scheduler,
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
                steps_of_an_epoch=math.ceil(num_training_steps / self.args.num_train_epochs),
            )
        return scheduler

    def run(self, state: Path | None) -> None:
        """Train, from a training state or from the beginning."""
        if self.resumed is not None and self.resumed["position"]["finished"]:
            self._load_from_checkpoint("")
            return
        self.train(resume_from_checkpoint=None if state is None else str(state))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Give every process its part of each batch, where accelerate would give it whole ones."""
        if self.watcher.sampler.share[1] == 1:
            return super().get_train_dataloader()
        loader: DataLoader[Any] = prepare_data_loader(
            self._build_dataloader(self.train_dataset, self.args.train_batch_size, dataset_kind="train"),
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
        )
        return loader

    def _save_checkpoint(self, model: object, trial: object) -> None:
        if not is_first():
            return
        # The watcher asks for it only where there is a place, and then all of these are there.
        assert self.states and self.optimizer and self.lr_scheduler  # noqa: S101, PT018
        self.states.save(
            self.state.global_step,
            {
                "position": self.watcher.position(self.state),
                "loss": _unwrapped(self.loss.state_dict()),  # type: ignore[attr-defined]
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.lr_scheduler.state_dict(),
                "random": random_state(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
                "average": self.watcher.session.average.state_dict(),
                "neighbours": self.watcher.neighbours(),
            },
            {TRAINER_STATE_NAME: _as_json(self.state)},
        )
        self.watcher.forget_others()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: object = None) -> None:
        assert self.resumed is not None  # noqa: S101
        self.loss.load_state_dict(self.resumed["loss"])  # type: ignore[attr-defined]
        self.watcher.session.average.load_state_dict(self.resumed["average"])
        self.watcher.set_neighbours(self.resumed.get("neighbours"))
        self.watcher.take_up(self.resumed["position"])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.resumed is not None:
            assert self.optimizer and self.lr_scheduler  # noqa: S101, PT018
            self.optimizer.load_state_dict(self.resumed["optimizer"])
            self.lr_scheduler.load_state_dict(self.resumed["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.resumed is not None and self.resumed.get("scaler"):
            self.accelerator.scaler.load_state_dict(self.resumed["scaler"])

    def _load_callback_state(self) -> None:
        # The loop derives the epoch and the batch to go on with from the steps and the batches of the first
        # epoch, but another epoch may have a batch more or less. It is told the step that leads it right.
        self.state.global_step = self.watcher.epochs * self._steps_of_an_epoch() + self.watcher.in_epoch

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.resumed is not None:
            self.state.global_step = self._globalstep_last_logged = self.resumed["position"]["step"]
            set_random_state(self.resumed["random"])

    def _steps_of_an_epoch(self) -> int:
        return math.ceil(self.state.max_steps / self.args.num_train_epochs)


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """The weights by the names that they have where there is one process."""
    wrapped = f"{MODEL}module."
    return {
        name.replace(wrapped, MODEL, 1) if name.startswith(wrapped) else name: v for name, v in state.items()
    }


def _as_json(state: TrainerState) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / TRAINER_STATE_NAME
        state.save_to_json(str(path))
        return path.read_text(encoding="utf-8")


class _Watcher(TrainerCallback):
    """Tells of steps and epochs as they end, and says when to save and when to stop.

    Attributes:
        epochs: Epochs done.
        in_epoch: Steps done of the one that is under way.
        batches: Batches done of it.
        stopping: Whether it was asked to stop, and does.
    """

    def __init__(
        self,
        settings: TrainingOptions,
        session: Session,
        loss: Loss,
        data: TrainingData,
        sampler: SeededBatchSampler,
    ) -> None:
        self.loss = loss
        # With several processes the loss is given another, which wraps it.
        self.model = loss.model
        self.data = data
        self.sampler = sampler
        self.monitor = Monitor(settings)
        self.losses: list[float] = []
        self.settings = settings
        self.session = session
        self.epochs = 0
        self.in_epoch = 0
        self.batches = 0
        self.finished = False
        self.stopping = False
        self.tell_loggers: Callable[[dict[str, float]], None]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self._tell_metrics(self.session.before)

    def _tell_metrics(self, metrics: Mapping[str, float]) -> None:
        """Tell loggers, and a user's callbacks, in transformers' way."""
        if metrics:
            self.tell_loggers({f"eval_{name}": value for name, value in metrics.items()})

    def position(self, state: TrainerState) -> dict[str, Any]:
        """How far training is, to be saved."""
        return {
            "step": state.global_step,
            "batch_size": self.settings.rows_per_batch,
            "epochs": self.epochs,
            "in_epoch": self.in_epoch,
            "batches": self.batches,
            "finished": self.finished,
            "losses": self.losses,
            "mined": self.loss.mined,
            "monitor": self.monitor.state_dict(),
        }

    def take_up(self, position: dict[str, Any]) -> None:
        """Take up a saved position."""
        self.epochs, self.in_epoch = position["epochs"], position["in_epoch"]
        self.batches, self.finished = position["batches"], position["finished"]
        self.losses, self.loss.mined = position["losses"], position["mined"]
        self.monitor.load_state_dict(position["monitor"])

    def forget_others(self) -> None:
        """Remove the weights of epochs that were the best, and are not any more."""
        for path in self.session.scratch.glob("best-*.safetensors"):
            if path.name != f"best-{self.monitor.best_epoch}.safetensors":
                path.unlink()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        # Would be saved with every state, and grow with every step.
        state.log_history.clear()
        loss = given["logs"].get("loss")
        if loss is None:
            return
        # With fp16 a step whose gradients overflow is left out, and its scale lowered.
        if not args.fp16 and not math.isfinite(given["logs"].get("grad_norm", 0.0)):
            # Told before a state with spoilt weights is saved.
            self._undo_step(state)
            raise NotFiniteError("the gradients are not finite")
        self.losses.append(loss)
        self.session.on_progress(
            Progress(state.global_step, state.max_steps, round(state.epoch or 0.0, 4), loss)
        )

    def _undo_step(self, state: TrainerState) -> None:
        state.global_step -= 1
        self.batches -= 1

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self.batches += 1

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self.in_epoch += 1
        self.batches += 1
        self.session.average.update(state.global_step, state.max_steps)
        ends_epoch = state.epoch == int(state.epoch or 0) or state.global_step >= state.max_steps
        # Where an epoch has more batches than the first, the loop could not find its way back to the last.
        savable = self.in_epoch < math.ceil(state.max_steps / args.num_train_epochs)
        if ends_epoch or not savable:
            return
        every = self.settings.checkpoint_steps
        if self.session.states and every and state.global_step % every == 0:
            control.should_save = True
        if agreed_flag(self.session.stop_asked()):
            self._stop(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if self.stopping:
            return
        self.epochs += 1
        self.in_epoch = self.batches = 0
        self._warn_of_nothing_mined()
        with self.session.average.applied():
            metrics = agreed_metrics(self.session.on_epoch())
            self._tell_metrics(metrics)
            values = {
                **metrics,
                "loss": sum(self.losses) / max(1, len(self.losses)),
            }
            better = self.settings.monitored and self.monitor.update(self.epochs, values)
            if better and self.settings.keep_best and is_first():
                self._save_best()
        self.losses = []
        if self.monitor.gives_up:
            log.info("no better %s for %d epochs", self.settings.monitor, self.monitor.waited)
            control.should_training_stop = True
        self.finished = self.epochs >= self.settings.epochs or control.should_training_stop
        if self.session.states and (self.finished or self.epochs % self.settings.checkpoint_epochs == 0):
            control.should_save = True
        if not self.finished:
            self._mine_negatives()
            if agreed_flag(self.session.stop_asked()):
                self._stop(control)

    def _mine_negatives(self) -> None:
        if not self.settings.mine_negatives or not isinstance(self.sampler, ClassBalancedBatchSampler):
            return
        found = no_neighbours(self.sampler.labels)
        if is_first():
            vectors = TorchEncoder(self.model).encode([record.text for record in self.data.records])
            found = confusable_labels(vectors, self.sampler.labels, margin=self.settings.negative_margin)
        self.sampler.neighbours = found = agreed_table(found)
        confused = int((found[:, 0] >= 0).sum())
        log.info("hard negatives: %d of %d labels have some", confused, len(found))
        if not confused:
            log.warning(
                "no hard negatives were found after epoch %d: the nearest records of other labels are within "
                "negative_margin (%g) of the positives, or far away",
                self.epochs,
                self.settings.negative_margin,
            )

    def neighbours(self) -> torch.Tensor | None:
        """The labels that share batches, to be saved; None where any do."""
        found = getattr(self.sampler, "neighbours", None)
        return None if found is None else torch.from_numpy(found)

    def set_neighbours(self, saved: torch.Tensor | None) -> None:
        """Take up what was saved."""
        if saved is not None and isinstance(self.sampler, ClassBalancedBatchSampler):
            self.sampler.neighbours = saved.numpy()

    def _save_best(self) -> None:
        path = _best(self.session.scratch, self.epochs)
        try:
            weights = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
            save_file(weights, path)
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)
            raise CognateError(f"the best weights could not be written to {path}: {error}") from error
        if self.session.states is None:
            self.forget_others()

    def _warn_of_nothing_mined(self) -> None:
        if self.settings.miner != "none" and not self.loss.mined:
            log.warning(
                "the miner %s found nothing to learn from in epoch %d: labels may be told apart well enough "
                "already, or batches be too small; try miner_options.type_of_triplets=all, a larger "
                "batch_size, or another miner",
                self.settings.miner,
                self.epochs,
            )
        self.loss.mined = 0

    def _stop(self, control: TrainerControl) -> None:
        self.stopping = control.should_training_stop = True
        control.should_save = self.session.states is not None
