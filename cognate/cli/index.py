"""``cognate index``: build indexes, look at them, and change those of a running server."""

import dataclasses
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from cognate.cli.connection import TARGET, Target, Tls, TlsCa, TlsClient, connect
from cognate.cli.rejects import OnError, RejectsFile, keep_rejects, rejects_path
from cognate.cli.terminal import job_progress, needs, note, out, print_json, progress_bar
from cognate.errors import CognateError
from cognate.records import STDIN, read_numbered_records
from cognate.wire import MAX_TEXTS_PER_CALL, IndexDescription

if TYPE_CHECKING:
    from cognate.index import IndexManifest

app = typer.Typer(help="Build indexes, and change those of a running server.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The name that the server has it under.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
UNCOUNTED = ("expected", "kept")
"""What a job's tally says only while it runs."""


@app.command()
def build(
    records: Annotated[
        list[str] | None,
        typer.Argument(
            help="Record files, patterns, folders of Parquet files, URLs, an index; - is standard input."
        ),
    ] = None,
    *,
    bundle: Annotated[Path, typer.Option(help="The bundle to encode with.")],
    destination: Annotated[Path, typer.Option("--out", help="The index's folder.")],
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to encode.")] = "auto",
    kind: Annotated[
        Literal["auto", "flat", "hnsw", "ivf_flat", "ivf_pq"],
        typer.Option(help="flat is exact; the others are quicker or smaller; auto chooses by size."),
    ] = "auto",
    storage: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(help="Number format to search in; full vectors score the best again."),
    ] = "fp32",
    factory: Annotated[
        str | None, typer.Option(help="A string of faiss.index_factory instead of a kind, for experts.")
    ] = None,
    recall: Annotated[
        float, typer.Option(min=0, max=1, help="recall@10 that balanced searches shall have.")
    ] = 0.99,
    on_error: OnError = "stop",
    rejects: RejectsFile = None,
    force: Annotated[bool, typer.Option(help="Replace an index that is there.")] = False,
    on_duplicate: Annotated[
        Literal["refuse", "last"],
        typer.Option(help="Two records with one id: stop there, or keep the last of them."),
    ] = "refuse",
    reuse: Annotated[
        Path | None,
        typer.Option(help="An older index of the same bundle: only texts it has not got are encoded."),
    ] = None,
    sql: Annotated[
        str | None, typer.Option(help="Read the rows of a query instead; needs --database.")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(help="URL of the query's database, as SQLAlchemy has it.", envvar="COGNATE_DATABASE"),
    ] = None,
    restart: Annotated[
        bool, typer.Option(help="Throw away what an interrupted job has done, and begin anew.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Who encodes: this machine, or workers of a Ray cluster, to the same index."),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of the cluster's head; auto is the cluster that this machine belongs to. "
            "[default: one of this machine alone]",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray workers. [default: as many as there is room for]")
    ] = None,
    worker_cpus: Annotated[int, typer.Option(min=1, help="Cores of a Ray worker.")] = 1,
    worker_gpus: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="GPUs of a Ray worker; 0.5 puts two on one. [default: 0, or 1 for cuda]"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Encode records, however many, into an index.

    Run again after it was interrupted, it goes on where it was.

    Example: cognate index build records.jsonl --bundle bundle/ --out index/
    """
    with needs("serve"):
        import indexer
        from cognate.index_kinds import Layout
    if (sql is None) == (not records):
        raise CognateError("give either what to read records from or --sql, not both and not none")
    if sql is not None and database is None:
        raise CognateError("--sql needs --database, the URL of the database to ask")
    cluster = indexer.Cluster(ray_address, workers, worker_cpus, worker_gpus)
    if engine == "local" and cluster != indexer.Cluster():
        raise CognateError(
            "--ray-address, --workers, --worker-cpus and --worker-gpus are for --engine ray; give it, too"
        )
    source = indexer.open_source(records or []) if sql is None else indexer.sql_source(database or "", sql)
    started = time.monotonic()
    told = rejects_path(rejects, destination)
    tally = indexer.Tally()
    with keep_rejects(on_error, told) as kept, job_progress("records") as progress:

        def start(tally: indexer.Tally) -> None:
            if tally.resumed:
                note(f"going on with the job that was interrupted: {tally.resumed:,} records are done")
            if records == [STDIN]:
                note("standard input cannot be read again: if this job is interrupted, it cannot be resumed")
            progress.begin(tally.resumed, tally.expected)

        def advance(count: int) -> None:
            progress.advance(count, f", {kept.count:,} rejects" if kept and kept.count else "")

        try:
            manifest = indexer.build(
                source,
                bundle,
                destination,
                layout=Layout(kind, storage, factory, recall),
                device=device,
                force=force,
                rejects=kept,
                on_progress=advance,
                on_duplicate=on_duplicate,
                reuse=reuse,
                restart=restart,
                tally=tally,
                on_start=start,
                cluster=cluster if engine == "ray" else None,
                on_note=note,
            )
        except BaseException:
            if tally.kept:
                note(f"{tally.kept:,} records are done and kept: the same command goes on from there")
            raise
    seconds = time.monotonic() - started
    skipped = kept.count if kept else 0
    if as_json:
        described = manifest.model_dump(mode="json", exclude={"files"})
        counts = {name: value for name, value in dataclasses.asdict(tally).items() if name not in UNCOUNTED}
        print_json(
            {
                **described,
                "path": str(destination),
                "seconds": round(seconds, 3),
                "rejected": skipped,
                **counts,
            }
        )
        return
    out.print(
        f"{destination}: an index of {manifest.count:,} records, {manifest.kind}, "
        f"{manifest.dimension} dimensions, recall@10 {manifest.recall_at_10:.4f}, "
        f"in {seconds:.1f} s ({(manifest.count - tally.resumed) / seconds:,.0f} records/s)"
    )
    if manifest.search and manifest.recall_at_10 is not None and manifest.recall_at_10 < recall:
        note(
            f"no parameters that were tried reach recall@10 {recall:g}; `cognate index info {destination} "
            "--tradeoff` shows them"
        )
    for count, what in (
        (tally.repeated, "records repeat the text of another, which was encoded once"),
        (tally.reused, "vectors were taken from the old index"),
        (tally.replaced, "records were dropped for a later one with the same id"),
    ):
        if count:
            note(f"{count:,} {what}")
    if skipped:
        note(f"{skipped} bad lines were skipped; {told} says which and why")


@app.command()
def update(
    folder: Annotated[Path, typer.Argument(help="The index.")],
    bundle: Annotated[Path, typer.Option(help="The bundle that it was built with.")],
    upsert: Annotated[
        str | None,
        typer.Option(help="Records to write, each in the place of the one with its id; - is standard input."),
    ] = None,
    delete: Annotated[Path | None, typer.Option(help="Ids to delete before, one on each line.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to encode.")] = "auto",
    on_error: OnError = "stop",
    rejects: RejectsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write records to an index and delete others; what has changed is kept beside it, in INDEX.updates.

    Example: cognate index update index/ --bundle bundle/ --upsert new.jsonl --delete old.txt
    """
    with needs("serve"):
        import indexer
    told = rejects_path(rejects, folder)
    with keep_rejects(on_error, told) as kept, progress_bar("records") as bar:
        task = bar.add_task("encoding", total=None, rate="")
        updated = indexer.update(
            folder,
            bundle,
            upserts=upsert,
            deletes=delete,
            device=device,
            rejects=kept,
            on_progress=lambda count: bar.advance(task, count),
        )
    skipped = kept.count if kept else 0
    if as_json:
        print_json({**dataclasses.asdict(updated), "path": str(folder), "rejected": skipped})
        return
    out.print(
        f"{folder}: {updated.inserted:,} records inserted, {updated.replaced:,} replaced, "
        f"{updated.deleted:,} deleted; it holds {updated.count:,}"
    )
    if updated.superseded:
        note(f"{updated.superseded} records had an id that a later one has too, and the last counts")
    if skipped:
        note(f"{skipped} bad lines were skipped; {told} says which and why")


@app.command()
def compact(
    folder: Annotated[Path, typer.Argument(help="The index.")],
    as_json: AsJson = False,
) -> None:
    """Write an index anew with its updates in it, so that searching it is as quick as before them.

    Example: cognate index compact index/
    """
    with needs("serve"):
        from cognate.updates import IndexUpdates
    updates = IndexUpdates(folder, device="cpu")
    try:
        compacted = updates.compact()
        state = updates.index.state
        count = updates.index.count
    finally:
        updates.close()
        updates.index.close()
    if as_json:
        print_json({"path": str(folder), "compacted": compacted, "count": count, **state._asdict()})
    elif compacted:
        out.print(f"{folder}: version {state.base_version} holds all {count:,} records")
    else:
        out.print(f"{folder}: nothing has changed since it was built or compacted")


@app.command()
def info(
    folder: Annotated[Path, typer.Argument(help="An index.")],
    tradeoff: Annotated[
        bool, typer.Option(help="Show what was measured with other search parameters.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check an index file by file, and say what it holds.

    Example: cognate index info index/
    """
    with needs("serve"):
        from cognate.index import IndexManifest
        from cognate.update_log import read_log
        from cognate.updates import updates_folder
    manifest = IndexManifest.read(folder)
    log = read_log(updates_folder(folder))
    described = manifest.model_dump(mode="json", exclude={"files"}, exclude_none=as_json is False)
    described["bytes"] = sum(digest.size for digest in manifest.files.values())
    if log is not None:
        state, changes = log
        described["updates"] = {**state._asdict(), "changed": len(changes)}
    if as_json:
        print_json(described)
        return
    points = described.pop("tradeoff")
    for name, value in described.items():
        out.print(f"{name:14} {value}")
    if tradeoff and points:
        out.print(tradeoff_table(manifest))
    elif tradeoff:
        note("every search of this index is exact, so there was nothing to try")


def tradeoff_table(manifest: "IndexManifest") -> Table:
    """A table of what was measured with each choice of search parameters."""
    table = Table()
    for name in ("recall@10", "queries/s", "bytes/record"):
        table.add_column(name, justify="right")
    for name in ("parameters", "used by"):
        table.add_column(name)
    for point in sorted(manifest.tradeoff, key=lambda point: -point.queries_per_second):
        used = [name for name, parameters in manifest.search.items() if parameters == point.parameters]
        table.add_row(
            f"{point.recall_at_10:.4f}",
            f"{point.queries_per_second:,.0f}",
            f"{point.bytes_per_record:,.0f}",
            "full vectors" if point.parameters is None else str(point.parameters),
            ", ".join(used) if point.parameters is not None else "exact",
        )
    return table


@app.command()
def merge(
    indexes: Annotated[list[Path], typer.Argument(help="At least two indexes of one bundle.")],
    destination: Annotated[Path, typer.Option("--out", help="The new index's folder.")],
    on_duplicate: Annotated[
        Literal["refuse", "last"],
        typer.Option(help="An id that two indexes have: stop, or keep the record of the last one."),
    ] = "refuse",
    force: Annotated[bool, typer.Option(help="Replace an index that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put the records and vectors of several indexes into one, without encoding anything.

    Example: cognate index merge monday/ tuesday/ --out both/
    """
    with needs("serve"):
        import indexer
        from cognate.index_kinds import Layout
    manifest = indexer.merge(
        indexes, destination, layout=Layout("auto"), on_duplicate=on_duplicate, force=force
    )
    if as_json:
        print_json({**manifest.model_dump(mode="json", exclude={"files"}), "path": str(destination)})
        return
    out.print(f"{destination}: an index of {manifest.count:,} records, of {len(indexes)} indexes")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="An index.")],
    bundle: Annotated[Path, typer.Option(help="The bundle that it was built with.")],
    samples: Annotated[int, typer.Option(min=1, help="Records to encode again.")] = 1000,
    min_cosine: Annotated[
        float, typer.Option(min=-1, max=1, help="How near to its vector in the index each must be.")
    ] = 0.999,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to encode.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Check an index file by file, and encode samples of its records again to compare their vectors.

    Example: cognate index verify index/ --bundle bundle/
    """
    with needs("serve"):
        import indexer
    verified = indexer.verify(folder, bundle, samples=samples, device=device)
    if verified.min_cosine < min_cosine:
        raise CognateError(
            f"{folder}: the vector of record {verified.worst_id!r} is not what {bundle} gives its text: the "
            f"cosine of the two is {verified.min_cosine:.6f}, less than {min_cosine:g}; build the index again"
        )
    if as_json:
        print_json(dataclasses.asdict(verified))
        return
    out.print(
        f"{folder}: {verified.samples:,} records were encoded again; the smallest cosine with the vector in "
        f"the index is {verified.min_cosine:.6f}, the mean {verified.mean_cosine:.6f}"
    )


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="An index.")],
    destination: Annotated[Path, typer.Option("--out", help="A file ending in .parquet, .arrow or .npy.")],
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write an index's vectors and records to a file that other systems read.

    Example: cognate index export index/ --out vectors.parquet
    """
    with needs("serve"):
        import indexer
    paths = indexer.export(folder, destination, force=force)
    out.print(f"wrote {' and '.join(map(str, paths))}")


@app.command("list")
def list_indexes(
    target: Target = TARGET,
    timeout: Timeout = 10.0,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_client: TlsClient = None,
    as_json: AsJson = False,
) -> None:
    """List the indexes of a running server, and which version of each it serves.

    Example: cognate index list --target localhost:50051
    """
    with connect(target, timeout, tls, tls_ca, tls_client) as client:
        indexes = client.list_indexes()
    if as_json:
        print_json([_as_json(index) for index in indexes])
        return
    if not indexes:
        out.print(f"{target} has no index")
        return
    table = Table("name", "version", "previous", "state", "records", "built")
    for index in indexes:
        table.add_row(
            index.name,
            index.version,
            index.previous_version or "",
            index.state,
            f"{index.count:,}",
            f"{index.created_at:%Y-%m-%d %H:%M:%S}",
        )
    out.print(table)


@app.command()
def load(
    name: Name,
    path: Annotated[str, typer.Argument(help="The index's folder, on the server's disk.")],
    target: Target = TARGET,
    timeout: Timeout = 600.0,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_client: TlsClient = None,
    as_json: AsJson = False,
) -> None:
    """Have a running server load a version of an index, and switch to it once it is checked and warm.

    Example: cognate index load faq /srv/indexes/faq/v2
    """
    with connect(target, timeout, tls, tls_ca, tls_client) as client:
        _print_index(client.load_index(name, path), as_json)


@app.command()
def rollback(
    name: Name,
    target: Target = TARGET,
    timeout: Timeout = 600.0,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_client: TlsClient = None,
    as_json: AsJson = False,
) -> None:
    """Have a running server go back to the version of an index that it served before.

    Example: cognate index rollback faq
    """
    with connect(target, timeout, tls, tls_ca, tls_client) as client:
        _print_index(client.rollback_index(name), as_json)


@app.command()
def unload(
    name: Name,
    target: Target = TARGET,
    timeout: Timeout = 600.0,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_client: TlsClient = None,
) -> None:
    """Have a running server search an index no longer.

    Example: cognate index unload faq
    """
    with connect(target, timeout, tls, tls_ca, tls_client) as client:
        client.unload_index(name)
    out.print(f"{name} is unloaded")


@app.command()
def upsert(
    name: Name,
    records: Annotated[str, typer.Argument(help="A record file, or - for JSON Lines on standard input.")],
    target: Target = TARGET,
    timeout: Timeout = 60.0,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_client: TlsClient = None,
    as_json: AsJson = False,
) -> None:
    """Have a running server write records to an index, each in the place of the one with its id.

    Example: cognate index upsert faq new.jsonl
    """
    totals = {"inserted": 0, "replaced": 0, "superseded": 0}
    with connect(target, timeout, tls, tls_ca, tls_client) as client:
        read = read_numbered_records(records, require_id=True)
        while chunk := [record for _, record in itertools.islice(read, MAX_TEXTS_PER_CALL)]:
            written = client.upsert(chunk, index=name)
            for key in totals:
                totals[key] += getattr(written, key)
    if as_json:
        print_json({"index": name, **totals})
        return
    out.print(f"{name}: {totals['inserted']:,} records inserted, {totals['replaced']:,} replaced")
    if totals["superseded"]:
        note(f"{totals['superseded']} records had an id that a later one has too, and the last counts")


@app.command()
def delete(
    name: Name,
    ids: Annotated[list[str], typer.Argument(help="The ids of the records.")],
    target: Target = TARGET,
    timeout: Timeout = 10.0,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_client: TlsClient = None,
    as_json: AsJson = False,
) -> None:
    """Have a running server delete records of an index.

    Example: cognate index delete faq q17 q18
    """
    with connect(target, timeout, tls, tls_ca, tls_client) as client:
        deleted = client.delete(ids, index=name)
    if as_json:
        print_json({"index": name, "deleted": deleted})
        return
    out.print(f"{name}: {deleted:,} of {len(ids):,} records deleted")


def _print_index(index: IndexDescription, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(index))
        return
    before = f"; version {index.previous_version} was before" if index.previous_version else ""
    out.print(f"{index.name}: version {index.version} serves, {index.count:,} records{before}")


def _as_json(index: IndexDescription) -> dict[str, object]:
    return {**dataclasses.asdict(index), "created_at": index.created_at.isoformat()}
