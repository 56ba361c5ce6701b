"""``cognate models``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cognate.artifact import kind_of
from cognate.bundle import BundleManifest
from cognate.checkpoint import TRAINING, CheckpointManifest
from cognate.cli.terminal import needs, note, out, print_json
from cognate.models import KNOWN

OF_A_BUNDLE = ("model", "dimension", "max_length", "pooling", "precision", "target", "prompts", "fingerprint")


def models(
    name: Annotated[
        str | None,
        typer.Argument(help="One of them, a model folder, a checkpoint, a bundle, or any hub id."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List models to start from, or describe one.

    Parameters are in millions. A hub id that is not listed is downloaded, to be described.

    Example: cognate models minilm
    """
    if name is None:
        _list(as_json)
        return
    told = _described(name)
    if as_json:
        print_json(told)
        return
    for key, value in told.items():
        out.print(f"{key}: {value}")


def _list(as_json: bool) -> None:
    if as_json:
        print_json([asdict(model) for model in KNOWN])
        return
    table = Table()
    for column in ("model", "parameters", "dimension", "max_length", "licence", "good for"):
        table.add_column(column)
    for model in KNOWN:
        table.add_row(*map(str, asdict(model).values()))
    out.print(table)


def _described(name: str) -> dict[str, object]:
    known = next((asdict(model) for model in KNOWN if model.name == name), None)
    if known and not Path(name).exists():
        return known
    kind = kind_of(Path(name))
    if kind == BundleManifest.KIND:
        manifest = BundleManifest.read(Path(name)).model_dump(mode="json")
        return {"name": name, "kind": kind} | {field: manifest[field] for field in OF_A_BUNDLE}
    with needs("train"):
        from trainer.description import describe
    note("loading the model …")
    told = {"name": name, "kind": kind or "model"} | describe(name)
    if kind == CheckpointManifest.KIND:
        training = json.loads((Path(name) / TRAINING).read_bytes())
        told |= {"trained_from": training["model"], "loss": training["options"]["loss"]}
        told |= {"records": training["records"], "epoch": training["epoch"]}
    return told
