"""``cognate bundle``: ``info``, ``verify``, ``diff``, ``push`` and ``pull``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cognate.artifact import with_article
from cognate.bundle import Bundle, BundleManifest, Parity
from cognate.cli.terminal import needs, note, out, print_json

app = typer.Typer(help="Look at bundles, check and compare them, share them on a hub.", no_args_is_help=True)

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]
Repository = Annotated[str, typer.Argument(metavar="ORG/NAME", help="A model repository on the hub.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

SHOWN_WEIGHTS = 12
"""Rows of a table of weights; --json has all of them."""


@app.command()
def info(folder: BundleFolder, as_json: AsJson = False) -> None:
    """Check a bundle file by file, and say what it is.

    Example: cognate bundle info bundle/
    """
    manifest = BundleManifest.read(folder)
    described = manifest.model_dump(mode="json")
    described["bytes"] = sum(digest.size for digest in manifest.files.values())
    if as_json:
        print_json(described)
        return
    for name, value in described.items():
        if name != "files":
            out.print(f"{name:15} {_line(value)}")
    table = Table("file", "sha256")
    table.add_column("bytes", justify="right")
    for name, digest in manifest.files.items():
        table.add_row(name, f"{digest.sha256[:12]}…", f"{digest.size:,}")
    out.print(table)


@app.command()
def verify(
    folder: BundleFolder,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Also compare its vectors with torch's of this checkpoint or model."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every file and the fingerprint, run the graph, and compare its vectors with a model's.

    Example: cognate bundle verify bundle/ --against checkpoint/
    """
    with needs("train"):
        from exporter import verification
    found = verification.verify(folder, against)
    if as_json:
        print_json(
            {
                **dataclasses.asdict(found),
                "parity": found.parity and found.parity.model_dump(),
                "against": against,
            }
        )
        return
    out.print(f"{folder}: all {found.files} files are as they were written, {found.size:,} bytes")
    out.print(f"fingerprint {found.fingerprint}, computed anew")
    out.print(f"{found.texts} texts were encoded, each to a finite vector of unit length")
    if found.parity:
        out.print(f"the vectors are those of {against}: {parity_line(found.parity)}")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A bundle's folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another's.")],
    as_json: AsJson = False,
) -> None:
    """Say what differs between two bundles: settings, files, graph, tokenizer, vectors of the sample data.

    Example: cognate bundle diff bundle/ bundle-int8/
    """
    with needs("train"):
        from cognate.bundle_diff import diff_bundles
    found = diff_bundles(Bundle.open(first), Bundle.open(second))
    if as_json:
        print_json({"a": str(first), "b": str(second), **dataclasses.asdict(found)})
        return
    graph = found.graph
    _table("setting", found.settings)
    _table("file, bytes", found.files)
    _table("operator, nodes", graph.nodes | ({"opset": graph.opset} if graph.opset else {}))
    _table("weight", graph.initializers)
    if graph.changed_weights:
        out.print(f"{len(graph.changed_weights)} weights of the same shape have other numbers")
    _table("tokenizer", found.tokenizer)
    vectors = found.vectors
    if found.same_vectors:
        out.print("same fingerprint: the same vectors")
    if vectors.min_cosine is None or vectors.mean_cosine is None:
        out.print("the dimensions differ, so the vectors cannot be compared")
    else:
        out.print(
            f"cosine of the vectors of {vectors.texts} texts: smallest {vectors.min_cosine:.6f}, mean "
            f"{vectors.mean_cosine:.6f}"
        )
    out.print(f"of a query's ten nearest passages, {vectors.top_10_overlap:.1%} are the same")


@app.command()
def push(
    folder: BundleFolder,
    repository: Repository,
    private: Annotated[bool, typer.Option("--private", help="Hide a repository that is made.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a bundle to the Hugging Face hub, in one commit; needs HF_TOKEN, and obeys HF_ENDPOINT.

    Example: cognate bundle push bundle/ org/name
    """
    with needs("train"):
        from exporter import hub
    note(f"pushing to {repository} …")
    url = hub.push(folder, repository, private=private)
    if as_json:
        print_json({"repository": repository, "commit": url})
        return
    out.print(f"{repository}: {url}")


@app.command()
def pull(
    repository: Repository,
    destination: Annotated[Path, typer.Option("--out", help="The bundle's folder.")],
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
    force: Annotated[bool, typer.Option(help="Replace a bundle that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download a bundle from the Hugging Face hub, and verify it before it is put in its place.

    Example: cognate bundle pull org/name --out bundle/
    """
    with needs("train"):
        from exporter import hub
    note(f"pulling {repository} …")
    print_bundle(hub.pull(repository, destination, revision=revision, force=force), as_json=as_json)


def print_bundle(bundle: Bundle, *, as_json: bool) -> None:
    """Say what a bundle is that was just published."""
    manifest = bundle.manifest
    if as_json:
        print_json(manifest.model_dump(mode="json", exclude={"files"}) | {"path": str(bundle.folder)})
        return
    out.print(
        f"{bundle.folder}: {with_article(manifest.KIND)} of {manifest.dimension} dimensions, "
        f"up to {manifest.max_length} tokens a text, {manifest.precision}"
    )
    out.print(f"fingerprint {manifest.fingerprint}")


def parity_line(parity: Parity) -> str:
    """How near two encodings of the same texts are."""
    return (
        f"smallest cosine {parity.min_cosine:.7f}, largest difference {parity.max_abs_difference:.1e}, "
        f"over {parity.texts} texts"
    )


def _table(title: str, differing: Mapping[str, tuple[object, object]]) -> None:
    if not differing:
        return
    table = Table(title, "A", "B")
    for name, (left, right) in list(differing.items())[:SHOWN_WEIGHTS]:
        table.add_row(name, _line(left), _line(right))
    out.print(table)
    if len(differing) > SHOWN_WEIGHTS:
        out.print(f"and {len(differing) - SHOWN_WEIGHTS} more, which --json tells")


def _line(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_line(inner) or repr(inner)}" for key, inner in value.items())
    return str(value)
