"""``cognate train``."""

import inspect
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cognate.cli.terminal import metrics_table, needs, note, out, print_json, progress_bar
from cognate.errors import CognateError
from cognate.evaluation import DEFAULT_K, Evaluation
from cognate.runs import RUNS_DIR, RunFolder

Option = bool | int | float | str

FLAGS = (
    "epochs",
    "batch_size",
    "records_per_label",
    "learning_rate",
    "optimizer",
    "warmup_ratio",
    "loss",
    "miner",
    "mine_negatives",
    "precision",
    "pretrained_weight",
    "max_length",
    "seed",
    "k",
)
"""The options that have a flag; --set and --config give all of them."""


def train(
    context: typer.Context,
    train_data: Annotated[
        list[str] | None, typer.Argument(metavar="TRAIN...", help="Records with labels, pairs or triplets.")
    ] = None,
    destination: Annotated[
        Path | None, typer.Option("--out", help="The checkpoint's folder. [default: the run's]")
    ] = None,
    run_name: Annotated[
        str | None, typer.Option("--run", metavar="NAME", help="Keep a run of this name.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once; needs --run or --resume.")
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share every batch, on a GPU each; needs --detach.")
    ] = 1,
    resume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go on with a run from its last training state.")
    ] = None,
    runs_dir: Annotated[
        Path | None, typer.Option(envvar=RUNS_DIR, help="Where runs live. [default: runs]")
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="Records to evaluate with; needs --index.")] = None,
    index: Annotated[Path | None, typer.Option(help="Records that they are searched in.")] = None,
    model: Annotated[str, typer.Option(help="minilm, a checkpoint or model folder, or a hub id.")] = "minilm",
    epochs: Annotated[int, typer.Option(min=1, help="Times that every record is seen.")] = 3,
    batch_size: Annotated[
        str, typer.Option(help="Records of a batch, at most; auto: as many as fit the memory.")
    ] = "128",
    records_per_label: Annotated[
        int,
        typer.Option(
            min=2,
            help="Records of a label in a batch, at most; it has batch-size / records-per-label labels.",
        ),
    ] = 4,
    learning_rate: Annotated[float, typer.Option(help="At its peak.")] = 2e-5,
    optimizer: Annotated[str, typer.Option(help="One of torch.optim, by class name.")] = "adamw",
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
    mine_negatives: Annotated[
        bool,
        typer.Option(
            "--mine-negatives", help="After each epoch, bring labels that the model confuses into one batch."
        ),
    ] = False,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option(help="Of the model's arithmetic; bf16 is faster where it is there; fp16 is for CUDA."),
    ] = "fp32",
    pretrained_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the weights before training in the final ones.")
    ] = 0.0,
    max_length: Annotated[
        int | None, typer.Option(min=4, help="Tokens read of a text in training. [default: the model's]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same one gives the same checkpoint.")] = 0,
    k: Annotated[int, typer.Option("--k", min=1, help="Hits that evaluations look at.")] = DEFAULT_K,
    logger: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard, mlflow or wandb: told of the loss and the metrics. May be repeated."),
    ] = None,
    set_option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any option of docs/tune.md; may be repeated."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of options; flags go before it.")] = None,
    force: Annotated[bool, typer.Option(help="Replace a checkpoint, or a run, that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Fine-tune a model so that records of one label come near to each other.

    Example: cognate train train.jsonl --queries queries.jsonl --index index.jsonl --out checkpoint/
    """
    given = {name for name in context.params if _was_given(context, name)}
    options = _config(config)
    options |= {name: context.params[name] for name in FLAGS if name in given}
    for name, pairs in (("loss", loss_option), ("miner", miner_option)):
        if name in given:
            # The file's options are of the loss or the miner that the file names.
            options.pop(f"{name}_options", None)
        if pairs is not None:
            options[f"{name}_options"] = _options(pairs)
    if logger:
        options["loggers"] = logger
    for pair in set_option or []:
        _set(options, pair)
    if resume is not None:
        if run_name is not None or force:
            raise typer.BadParameter("--resume goes on with a run as it is; leave out --run and --force")
    elif not train_data:
        raise typer.BadParameter("Missing argument 'TRAIN...'.")
    elif run_name is None and destination is None:
        raise typer.BadParameter("Missing option '--out', or '--run'.")
    if detach and run_name is None and resume is None:
        raise typer.BadParameter("--detach needs --run NAME: another process goes on with it")
    if processes > 1 and not detach:
        raise typer.BadParameter("--processes needs --detach; follow the run with cognate runs NAME --follow")
    with needs("train"):
        import trainer
    if flags := sorted(set(options) & set(inspect.signature(trainer.fit).parameters)):
        raise CognateError(
            f"{', '.join(flags)} cannot be given by --set or in the --config file; see the arguments and "
            "flags of cognate train --help"
        )
    if detach and resume is None:
        assert train_data is not None and run_name is not None  # noqa: S101, PT018 - Checked above.
        folder = trainer.start(
            model,
            train_data,
            run=run_name,
            runs_dir=runs_dir,
            out=destination,
            queries=queries,
            index=index,
            force=force,
            processes=processes,
            **options,
        )
        _tell_started(folder, as_json)
        return
    expected = None
    if resume is not None:
        sources = {"model", "train_data", "destination", "queries", "index"} & given
        expected = trainer.expected_job(
            trainer.get_run(resume, runs_dir),
            options,
            **{"out" if name == "destination" else name: context.params[name] for name in sources},
        )
        if detach:
            _tell_started(trainer.restart(resume, runs_dir, expected, processes=processes), as_json)
            return
    if train_data:
        from trainer.kinds import detect_all

        note(f"{' and '.join(train_data)}: {detect_all(train_data).kind}, by the columns")
    note("loading the libraries and the model …")
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

        if resume is not None:
            run = trainer.resume(
                resume,
                runs_dir=runs_dir,
                expected=expected,
                on_progress=on_progress,
                on_evaluation=_tell,
            )
        else:
            assert train_data is not None  # noqa: S101 - Checked above.
            run = trainer.fit(
                model,
                train_data,
                out=destination,
                run=run_name,
                runs_dir=runs_dir,
                queries=queries,
                index=index,
                force=force,
                on_progress=on_progress,
                on_evaluation=_tell,
                **options,
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
        out.print(
            metrics_table({"before": run.evaluations[0].metrics, "after": run.evaluations[run.epoch].metrics})
        )
    out.print(f"{run.checkpoint}: a checkpoint, after {run.seconds:.0f} s")


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _tell_started(folder: RunFolder, as_json: bool) -> None:
    if as_json:
        print_json({"run": folder.name, "folder": str(folder.folder)})
        return
    out.print(f"{folder.folder}: a run, started; follow it with cognate runs {folder.name} --follow")


def _config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CognateError(f"{path} is no TOML: {error}") from None


def _set(options: dict[str, Any], pair: str) -> None:
    """Put NAME=VALUE, or NAME.OPTION=VALUE, among the options."""
    name, equals, text = pair.partition("=")
    if not name or not equals:
        raise CognateError(f"{pair!r} is no option; write NAME=VALUE, such as weight_decay=0.01")
    name, dot, inner = name.replace("-", "_").partition(".")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if not dot:
        options[name] = value
        return
    nested = options.setdefault(name, {})
    if not isinstance(nested, dict):
        raise CognateError(f"{name} has a value, so {pair!r} cannot set a part of it")
    nested[inner] = value


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
