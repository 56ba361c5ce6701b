"""``cognate index build`` and ``cognate index info``."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from cognate.cli.rejects import OnError, RejectsFile, keep_rejects, rejects_path
from cognate.cli.terminal import needs, note, out, print_json, progress_bar

app = typer.Typer(help="Build indexes and look at them.", no_args_is_help=True)


@app.command()
def build(
    records: Annotated[str, typer.Argument(help="A record file, or - for JSON Lines on standard input.")],
    bundle: Annotated[Path, typer.Option(help="The bundle to encode with.")],
    destination: Annotated[Path, typer.Option("--out", help="The index's folder.")],
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to encode.")] = "auto",
    on_error: OnError = "stop",
    rejects: RejectsFile = None,
    force: Annotated[bool, typer.Option(help="Replace an index that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Encode a file of records of any size into an index.

    Example: cognate index build records.jsonl --bundle bundle/ --out index/
    """
    with needs("serve"):
        import indexer
    started = time.monotonic()
    told = rejects_path(rejects, destination)
    with keep_rejects(on_error, told) as kept, progress_bar("records") as bar:
        task = bar.add_task("encoding", total=None, rate="")
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.update(task, completed=done, rate=f"{done / (time.monotonic() - started):,.0f}")

        manifest = indexer.build(
            records, bundle, destination, device=device, force=force, rejects=kept, on_progress=advance
        )
    seconds = time.monotonic() - started
    skipped = kept.count if kept else 0
    if as_json:
        described = manifest.model_dump(mode="json", exclude={"files"})
        print_json({**described, "path": str(destination), "seconds": round(seconds, 3), "rejected": skipped})
        return
    out.print(
        f"{destination}: an index of {manifest.count:,} records, {manifest.kind}, "
        f"{manifest.dimension} dimensions, recall@10 {manifest.recall_at_10:.4f}, "
        f"in {seconds:.1f} s ({manifest.count / seconds:,.0f} records/s)"
    )
    if skipped:
        note(f"{skipped} bad lines were skipped; {told} says which and why")


@app.command()
def info(
    folder: Annotated[Path, typer.Argument(help="An index.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check an index file by file, and say what it holds.

    Example: cognate index info index/
    """
    with needs("serve"):
        from cognate.index import IndexManifest
    manifest = IndexManifest.read(folder)
    described = manifest.model_dump(mode="json", exclude={"files"})
    described["bytes"] = sum(digest.size for digest in manifest.files.values())
    if as_json:
        print_json(described)
        return
    for name, value in described.items():
        out.print(f"{name:14} {value}")
