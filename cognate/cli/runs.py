"""``cognate runs``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cognate.cli.terminal import needs, note, out, print_json
from cognate.runs import RUNS_DIR, RunFolder, get_run, list_runs


def runs(
    name: Annotated[str | None, typer.Argument(help="A run; without it, all are listed.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Its log, as it comes, until it ends.")] = False,
    logs: Annotated[bool, typer.Option("--logs", help="Its log.")] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="Its loss and metrics, as JSON Lines.")] = False,
    examples: Annotated[
        bool, typer.Option("--examples", help="A few queries, with their hits before and after.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write its report.html again, and say where it is.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop it after its step; --resume goes on.")] = False,
    runs_dir: Annotated[
        Path | None, typer.Option(envvar=RUNS_DIR, help="Where runs live. [default: runs]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List training runs, or look at one.

    Example: cognate runs first --follow
    """
    asked = [follow, logs, metrics, examples, report, stop].count(True)
    if asked > 1 or (asked and name is None):
        raise typer.BadParameter(
            "give the name of a run, and one of --follow, --logs, --metrics, --examples, --report, --stop"
        )
    with needs("train"):
        import psutil  # noqa: F401 - Tells whether a run's process is there.
    if name is None:
        _list(list_runs(runs_dir), as_json)
        return
    run = get_run(name, runs_dir)
    if follow:
        for line in run.stream_logs():
            out.print(line)
        _state(run, as_json=False)
    elif logs:
        out.print(run.logs(), end="")
    elif metrics:
        for measured in run.metrics():
            print_json(measured)
    elif examples:
        _examples(run, as_json)
    elif report:
        with needs("train"):
            from trainer.report import rewrite_report
        path = rewrite_report(run)
        if as_json:
            print_json({"report": str(path)})
        else:
            out.print(str(path))
    else:
        if stop:
            if run.status().state in ("created", "running"):
                note(f"{name} ends after the step that it is at …")
            run.stop()
        _state(run, as_json)


def _list(found: list[RunFolder], as_json: bool) -> None:
    if as_json:
        print_json([_told(run) for run in found])
        return
    table = Table()
    for column in ("run", "state", "created", "step", "epoch", "loss", "average_precision"):
        table.add_column(column)
    for run in found:
        told = _told(run)
        table.add_row(*(_cell(told[c]) for c in ("run", "state", "created_at")), *map(_cell, _last(run)))
    out.print(table)


def _last(run: RunFolder) -> tuple[object, ...]:
    """The last step, epoch, loss and average_precision of a run."""
    steps = [line for line in run.metrics() if line["kind"] == "step"]
    evaluations = [line for line in run.metrics() if line["kind"] == "evaluation"]
    step = f"{steps[-1]['step']}/{steps[-1]['steps']}" if steps else None
    last = steps[-1] if steps else {"epoch": None, "loss": None}
    precision = evaluations[-1]["metrics"]["average_precision"] if evaluations else None
    return step, last["epoch"], last["loss"], precision


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _told(run: RunFolder) -> dict[str, object]:
    status = run.status().model_dump(mode="json")
    checkpoint = run.checkpoint
    return {"run": run.name, **status, "checkpoint": None if checkpoint is None else str(checkpoint)}


def _state(run: RunFolder, as_json: bool) -> None:
    told = _told(run)
    if as_json:
        print_json({**told, "config": run.config()})
        return
    step, epoch, loss, precision = _last(run)
    shown = {**told, "step": step, "epoch": epoch, "loss": loss, "average_precision": precision}
    for key, value in shown.items():
        if value is not None:
            out.print(f"{key}: {value}")


def _examples(run: RunFolder, as_json: bool) -> None:
    found = run.example_results()
    if as_json:
        print_json(found)
        return
    for example in found:
        out.print(f"{example['query']}")
        for when in ("before", "after"):
            for hit in example[when]:
                mark = "✓" if hit["label"] == example["label"] else " "
                out.print(f"  {when:6} {mark} {hit['score']:.4f}  {hit['text']}")
