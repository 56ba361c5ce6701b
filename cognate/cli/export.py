"""``cognate export``."""

from pathlib import Path
from typing import Annotated

import typer

from cognate.cli.terminal import needs, note, out, print_json


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, a sentence-transformers folder, a model name or hub id.")
    ],
    destination: Annotated[Path, typer.Option("--out", help="The bundle's folder.")],
    force: Annotated[bool, typer.Option(help="Replace a bundle that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Export a model to ONNX as a bundle, and check that its vectors are torch's.

    Example: cognate export checkpoint/ --out bundle/
    """
    note("loading the libraries and the model …")
    with needs("train"):
        import exporter
    bundle = exporter.export(checkpoint, destination, force=force)
    manifest = bundle.manifest
    if as_json:
        print_json(manifest.model_dump(mode="json", exclude={"files"}) | {"path": str(destination)})
        return
    parity = manifest.parity
    out.print(
        f"{destination}: a bundle of {manifest.dimension} dimensions, up to {manifest.max_length} tokens "
        "a text"
    )
    out.print(
        f"the same vectors as torch: smallest cosine {parity.min_cosine:.7f}, largest difference "
        f"{parity.max_abs_difference:.1e}, over {parity.texts} texts"
    )
    out.print(f"fingerprint {manifest.fingerprint}")
