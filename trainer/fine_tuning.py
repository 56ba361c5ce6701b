"""One training run: records in, evaluations on the way, a checkpoint out."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from cognate.artifact import check_destination, installed_versions, publishing, sha256_file
from cognate.checkpoint import TRAINING, CheckpointManifest
from cognate.errors import CognateError
from cognate.evaluation import Evaluation, evaluate, read_queries_and_index
from cognate.records import Record, read_records
from trainer.averaging import PretrainedAverage
from trainer.batches import ClassBalancedBatchSampler
from trainer.encoder import load_encoder
from trainer.losses import MetricLoss, make_loss, make_miner
from trainer.options import TrainingOptions


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
class Run:
    """What a training run left.

    Attributes:
        checkpoint: The folder of the checkpoint.
        evaluations: Before training and after each epoch; empty where no queries and index were given.
        seconds: How long it took.
    """

    checkpoint: Path
    evaluations: list[Evaluation]
    seconds: float


def fit(
    model: str,
    train_data: str | Path,
    *,
    out: str | Path,
    queries: str | Path | None = None,
    index: str | Path | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_evaluation: Callable[[int, Evaluation], None] | None = None,
    **options: Any,
) -> Run:
    """Fine-tune a model on labelled records so that records of one label come near to each other.

    The same seed and data on the same machine give the same checkpoint.

    Args:
        model: ``minilm``, a checkpoint or model folder, or a Hugging Face id.
        train_data: Records with labels.
        out: The checkpoint's folder.
        queries: Records to evaluate with, before training and after each epoch; needs ``index``.
        index: Records that the queries are searched in.
        force: Whether a checkpoint that is there is replaced.
        on_progress: Called after each step.
        on_evaluation: Called with the number of epochs done and what was found.
        options: Fields of ``TrainingOptions``.

    Returns:
        The checkpoint and the evaluations.

    Raises:
        CognateError: The data, the options or the destination will not do, or the loss is not finite.
        pydantic.ValidationError: An option is unknown or out of range.
    """
    started = time.monotonic()
    settings = TrainingOptions(**options)
    out = Path(out)
    check_destination(out, CheckpointManifest.KIND, force=force)
    if (queries is None) != (index is None):
        raise CognateError("evaluation needs both queries and index; give both, or neither")
    records, dropped = _training_records(train_data)
    searched = None
    if queries is not None and index is not None:
        searched = read_queries_and_index(queries, index)
    set_seed(settings.seed)
    encoder = load_encoder(model)
    evaluations: list[Evaluation] = []

    def evaluate_now() -> None:
        if searched is not None:
            evaluations.append(evaluate(encoder, *searched, k=settings.k))
            if on_evaluation:
                on_evaluation(len(evaluations) - 1, evaluations[-1])

    evaluate_now()
    average = PretrainedAverage(encoder.model, settings.pretrained_weight)

    def evaluate_average() -> None:
        with average.applied():
            evaluate_now()

    with publishing(out, CheckpointManifest.KIND, force=force) as partial:
        losses = _train(encoder.model, records, settings, evaluate_average, on_progress)
        average.apply()
        encoder.model.save(str(partial), create_model_card=False)
        seconds = time.monotonic() - started
        given = {"train": train_data, "queries": queries, "index": index}
        training = {
            "model": model,
            "data": {
                name: {"path": str(path), "sha256": sha256_file(Path(path))}
                for name, path in given.items()
                if path is not None and str(path) != "-"
            },
            "records": len(records),
            "labels": len({record.label for record in records}),
            "records_dropped_as_alone_in_their_label": dropped,
            "options": settings.model_dump(),
            "evaluations": [{"epoch": n, **e.as_json()} for n, e in enumerate(evaluations)],
            "losses": [asdict(progress) for progress in losses],
            "device": str(encoder.model.device),
            "seconds": round(seconds, 3),
            "versions": installed_versions("cognate", *CheckpointManifest.LIBRARIES),
        }
        (partial / TRAINING).write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
        CheckpointManifest.write(partial, model=model)
    return Run(checkpoint=out, evaluations=evaluations, seconds=seconds)


def _training_records(source: str | Path) -> tuple[list[Record], int]:
    """Read the records that can be trained on, and count those that are alone in their label."""
    records = list(read_records(source, require_label=True))
    sizes = Counter(record.label for record in records)
    kept = [record for record in records if sizes[record.label] > 1]
    labels = len({record.label for record in kept})
    if labels < 2:
        raise CognateError(
            f"{source} has {len(sizes)} labels, {labels} of them with two records or more; training needs at "
            "least two such labels, to tell what belongs together from what does not"
        )
    return kept, len(records) - len(kept)


def _train(
    model: SentenceTransformer,
    records: Sequence[Record],
    settings: TrainingOptions,
    on_epoch: Callable[[], None],
    on_progress: Callable[[Progress], None] | None,
) -> list[Progress]:
    """Run sentence-transformers' trainer, and give the loss as it went."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(r.label for r in records))}
    labels = [numbers[record.label] for record in records]
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
    ).to(model.device)
    max_length = model.max_seq_length
    if settings.max_length is not None:
        model.max_seq_length = min(settings.max_length, max_length or settings.max_length)
    watcher = _Watcher(on_epoch, on_progress)
    with tempfile.TemporaryDirectory(prefix="cognate-train-") as scratch:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=scratch,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup_ratio=settings.warmup_ratio,
            seed=settings.seed,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            dataloader_pin_memory=model.device.type == "cuda",
            batch_sampler=lambda dataset, **_: ClassBalancedBatchSampler(
                labels,
                labels_per_batch=settings.labels_per_batch,
                records_per_label=settings.records_per_label,
                seed=settings.seed,
            ),
        )
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"text": [record.text for record in records], "label": labels}),
            loss=loss,
            callbacks=[watcher],
            optimizers=(_optimizer(settings, [*model.parameters(), *loss.loss.parameters()]), None),
        )
        # It prints the loss on standard output, which is for results.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.max_seq_length = max_length
    return watcher.losses


def _optimizer(settings: TrainingOptions, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=settings.learning_rate, fused=True)


class _NoModelCard(TrainerCallback):
    """Stands where sentence-transformers collects a model card: training.json says more, at no cost."""

    def __init__(self, default_args_dict: object) -> None:
        super().__init__()


class _Trainer(SentenceTransformerTrainer):
    model_card_callback_class = _NoModelCard  # type: ignore[assignment]


class _Watcher(TrainerCallback):
    """Tells of steps and epochs as they end."""

    def __init__(self, on_epoch: Callable[[], None], on_progress: Callable[[Progress], None] | None) -> None:
        self.on_epoch = on_epoch
        self.on_progress = on_progress
        self.losses: list[Progress] = []

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        loss = given["logs"].get("loss")
        if loss is not None:
            progress = Progress(state.global_step, state.max_steps, round(state.epoch or 0.0, 4), loss)
            self.losses.append(progress)
            if self.on_progress:
                self.on_progress(progress)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self.on_epoch()
