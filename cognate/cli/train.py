"""``cognate train``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cognate.cli.terminal import metrics_table, needs, note, out, print_json, progress_bar
from cognate.errors import CognateError
from cognate.evaluation import DEFAULT_K, Evaluation

Option = bool | int | float | str


def train(
    train_data: Annotated[Path, typer.Argument(metavar="TRAIN", help="Records with labels.")],
    destination: Annotated[Path, typer.Option("--out", help="The checkpoint's folder.")],
    queries: Annotated[Path | None, typer.Option(help="Records to evaluate with; needs --index.")] = None,
    index: Annotated[Path | None, typer.Option(help="Records that they are searched in.")] = None,
    model: Annotated[str, typer.Option(help="minilm, a checkpoint or model folder, or a hub id.")] = "minilm",
    epochs: Annotated[int, typer.Option(min=1, help="Times that every record is seen.")] = 3,
    batch_size: Annotated[int, typer.Option(min=4, help="Records of a batch, at most.")] = 128,
    records_per_label: Annotated[
        int,
        typer.Option(
            min=2,
            help="Records of a label in a batch, at most; it has batch-size / records-per-label labels.",
        ),
    ] = 4,
    learning_rate: Annotated[float, typer.Option(help="At its peak.")] = 2e-5,
    optimizer: Annotated[Literal["adamw", "adam"], typer.Option(help="Which one.")] = "adamw",
    warmup_ratio: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the steps until the learning rate's peak.")
    ] = 0.1,
    loss: Annotated[str, typer.Option(help="A loss of pytorch-metric-learning.")] = "TripletMarginLoss",
    loss_option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the loss. [default: margin=0.2]")
    ] = None,
    miner: Annotated[
        str, typer.Option(help='A miner of pytorch-metric-learning, or "none".')
    ] = "TripletMarginMiner",
    miner_option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of the miner. [default: margin=0.2, type_of_triplets=semihard]"),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16"],
        typer.Option(help="Of the model's arithmetic; bf16 is faster where it is there."),
    ] = "fp32",
    pretrained_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the weights before training in the final ones.")
    ] = 0.0,
    max_length: Annotated[
        int | None, typer.Option(min=4, help="Tokens read of a text in training. [default: the model's]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same one gives the same checkpoint.")] = 0,
    k: Annotated[int, typer.Option("--k", min=1, help="Hits that evaluations look at.")] = DEFAULT_K,
    force: Annotated[bool, typer.Option(help="Replace a checkpoint that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Fine-tune a model so that records of one label come near to each other.

    Example: cognate train train.jsonl --queries queries.jsonl --index index.jsonl --out checkpoint/
    """
    chosen: dict[str, object] = {}
    if loss_option is not None or loss != "TripletMarginLoss":
        chosen["loss_options"] = _options(loss_option or [])
    if miner_option is not None or miner != "TripletMarginMiner":
        chosen["miner_options"] = _options(miner_option or [])
    note("loading the libraries and the model …")
    with needs("train"):
        import trainer

    with progress_bar("steps") as bar:
        task = bar.add_task("training", total=None, rate="")

        def on_progress(progress: trainer.Progress) -> None:
            bar.update(
                task,
                completed=progress.step,
                total=progress.steps,
                description=f"training, loss {progress.loss:.4f}",
                rate=f"{bar.tasks[task].speed or 0:.2f}",
            )

        run = trainer.fit(
            model,
            train_data,
            out=destination,
            queries=queries,
            index=index,
            force=force,
            on_progress=on_progress,
            on_evaluation=_tell,
            epochs=epochs,
            batch_size=batch_size,
            records_per_label=records_per_label,
            learning_rate=learning_rate,
            optimizer=optimizer,
            warmup_ratio=warmup_ratio,
            loss=loss,
            miner=miner,
            precision=precision,
            pretrained_weight=pretrained_weight,
            max_length=max_length,
            seed=seed,
            k=k,
            **chosen,
        )
    if as_json:
        print_json(
            {
                "checkpoint": str(run.checkpoint),
                "seconds": round(run.seconds, 3),
                "evaluations": [{"epoch": n, **e.as_json()} for n, e in enumerate(run.evaluations)],
            }
        )
        return
    if run.evaluations:
        out.print(metrics_table({"before": run.evaluations[0].metrics, "after": run.evaluations[-1].metrics}))
    out.print(f"{run.checkpoint}: a checkpoint, after {run.seconds:.0f} s")


def _tell(epoch: int, evaluation: Evaluation) -> None:
    when = f"after epoch {epoch}" if epoch else "before training"
    metrics = evaluation.metrics
    note(
        f"{when}: average_precision {metrics['average_precision']:.4f}, "
        f"ndcg_at_k {metrics['ndcg_at_k']:.4f}, recall_at_k {metrics['recall_at_k']:.4f}"
    )


def _options(given: list[str]) -> dict[str, Option]:
    options: dict[str, Option] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise CognateError(f"{pair!r} is no option; write NAME=VALUE, such as margin=0.2")
        options[name] = _value(value)
    return options


def _value(text: str) -> Option:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
