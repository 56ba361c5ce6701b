"""``cognate index build`` and ``cognate index info``."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from cognate.cli.terminal import needs, note, out, print_json, progress_bar
from cognate.errors import RecordError
from cognate.records import Rejects

app = typer.Typer(help="Build indexes and look at them.", no_args_is_help=True)


@app.command()
def build(
    records: Annotated[str, typer.Argument(help="A record file, or - for JSON Lines on standard input.")],
    bundle: Annotated[Path, typer.Option(help="The bundle to encode with.")],
    destination: Annotated[Path, typer.Option("--out", help="The index's folder.")],
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to encode.")] = "auto",
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="What to do with a bad line: stop there, or skip it.")
    ] = "stop",
    rejects: Annotated[
        Path | None, typer.Option(help="Where skipped lines are told. [default: OUT.rejects.txt]")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an index that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Encode a file of records of any size into an index.

    Example: cognate index build records.jsonl --bundle bundle/ --out index/
    """
    with needs("serve"):
        import indexer
    started = time.monotonic()
    told = rejects or destination.absolute().with_name(destination.name + ".rejects.txt")
    with _rejects(told if on_error == "skip" else None) as kept, progress_bar("records") as bar:
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
        f"index {destination}: {manifest.count:,} records, {manifest.kind}, {manifest.dimension} dimensions, "
        f"recall@10 {manifest.recall_at_10:.4f}, in {seconds:.1f} s ({manifest.count / seconds:,.0f} records/s)"
    )
    if skipped:
        note(f"{skipped} bad lines were skipped; {told} says which and why")


@contextlib.contextmanager
def _rejects(path: Path | None) -> Iterator[Rejects | None]:
    """Keep what was wrong with each skipped line in a file, which is made when there is one."""
    if path is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        file = None

        def report(error: RecordError) -> None:
            nonlocal file
            file = file or stack.enter_context(path.open("w", encoding="utf-8"))
            file.write(f"{error}\n")

        yield Rejects(report)


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
