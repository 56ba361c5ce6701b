"""``cognate export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from cognate.bundle import Parity
from cognate.cli.terminal import needs, note, out, print_json


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, a sentence-transformers folder, a model name or hub id.")
    ],
    destination: Annotated[Path, typer.Option("--out", help="The bundle's folder.")],
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"],
        typer.Option(
            help="Number format of the weights: int8 for processors, fp16 for GPUs, bf16 for GPUs and "
            "processors that have it."
        ),
    ] = "fp32",
    target: Annotated[
        Literal["auto", "avx2", "avx512_vnni", "avx512_bf16", "arm64", "cuda"],
        typer.Option(help="The processor that runs the bundle; auto is this one."),
    ] = "auto",
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Records like those to be encoded: fixes int8's ranges, whatever the batch."),
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="Records to compare the metrics on.")] = None,
    index: Annotated[Path | None, typer.Option(help="Records that the queries are searched in.")] = None,
    pooling: Annotated[
        str | None, typer.Option(help="mean, cls, …: for a model that does not say how it pools.")
    ] = None,
    allow_loss: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Accept a figure beyond its limit: min_cosine, a metric, …"),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Also upload the bundle to the Hugging Face hub.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a bundle that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Export a model to ONNX as a bundle, and check that its vectors are torch's.

    Example: cognate export checkpoint/ --out bundle/ --precision int8
    """
    note("loading the libraries and the model …")
    with needs("train"):
        import exporter
        from exporter import hub
        from exporter.parity import figures_of, limit_of
    if push:
        hub.check_can_push(push)
    bundle = exporter.export(
        checkpoint,
        destination,
        precision=precision,
        target=target,
        calibrate=calibrate,
        queries=queries,
        index=index,
        pooling=pooling,
        allow_loss=allow_loss or (),
        force=force,
    )
    commit = {}
    if push:
        note(f"pushing to {push} …")
        commit = {"commit": hub.push(bundle, push)}
    manifest = bundle.manifest
    if as_json:
        print_json(manifest.model_dump(mode="json", exclude={"files"}) | {"path": str(destination)} | commit)
        return
    made_for = "" if manifest.target == "any" else f" for {manifest.target}"
    megabytes = sum(digest.size for digest in manifest.files.values()) / 1e6
    out.print(
        f"{destination}: a bundle of {manifest.dimension} dimensions, up to {manifest.max_length} tokens "
        f"a text, {manifest.precision}{made_for}, {megabytes:.1f} MB"
    )
    parity = manifest.parity
    figures = figures_of(parity)
    out.print(parity_table(parity, figures, {name: limit_of(name, precision) for name in figures}))
    if chosen := manifest.quantization:
        embeddings = "int8" if chosen.int8_embeddings else "fp32"
        out.print(
            f"int8, {chosen.mode}: {chosen.smoothed} layers smoothed, {chosen.split} split, "
            f"{len(chosen.float_layers)} in fp32; token embeddings {embeddings}"
        )
    out.print(f"fingerprint {manifest.fingerprint}")
    if push:
        out.print(f"{push}: {commit['commit']}")


def parity_table(parity: Parity, figures: dict[str, float], limits: dict[str, float]) -> Table:
    """What was measured against torch, and what it must reach."""
    table = Table(title=f"against torch, over {parity.texts} texts", title_justify="left")
    table.add_column("figure")
    for column in ("measured", "at least", ""):
        table.add_column(column, justify="right")
    for name, value in figures.items():
        is_cosine = name.endswith("cosine")
        table.add_row(
            name,
            f"{value:.7f}"
            if is_cosine
            else f"{value:+.4f}"
            if name in (parity.metric_differences or {})
            else f"{value:.4f}",
            f"{limits[name]}",
            "accepted" if name in parity.accepted else "",
        )
    for name in ("max_abs_difference", "batch_dependence"):
        value = getattr(parity, name)
        if value is not None:
            table.add_row(name, f"{value:.1e}", "", "")
    return table
