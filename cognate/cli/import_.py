"""``cognate import``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cognate.cli.bundle import parity_line, print_bundle
from cognate.cli.terminal import needs, note, out


def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of an ONNX embedding model.")],
    destination: Annotated[Path, typer.Option("--out", help="The bundle's folder.")],
    file: Annotated[
        str | None, typer.Option(help="Which of several graphs, such as onnx/model_O3.onnx.")
    ] = None,
    pooling: Annotated[
        Literal["mean", "cls", "max", "lasttoken", "weightedmean"] | None,
        typer.Option(help="How token vectors become one, where the folder does not say."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a text, where the folder's own will not do.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a bundle that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make a bundle of an ONNX embedding model that someone else exported.

    Takes the layouts of sentence-transformers and of Optimum. The bundle has the vectors of the model's own
    graph, pooled and normalised, or is not written.

    Example: cognate import model/ --out bundle/ --pooling mean
    """
    note("loading the libraries and the model …")
    with needs("train"):
        from exporter.interchange import import_folder
    bundle = import_folder(
        folder, destination, file=file, pooling=pooling, max_length=max_length, force=force
    )
    print_bundle(bundle, as_json=as_json)
    if not as_json:
        out.print(f"the same vectors as {folder}: {parity_line(bundle.manifest.parity)}")
