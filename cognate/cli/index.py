"""``cognate index``: build indexes, look at them, and change those of a running server."""

import contextlib
import dataclasses
import itertools
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from cognate.cli.connection import TARGET, Target, Tls, TlsCa, TlsClient, connect
from cognate.cli.device import EncodeDevice
from cognate.cli.rejects import OnError, RejectsFile, keep_rejects, rejects_path
from cognate.cli.terminal import job_progress, needs, note, out, print_json, progress_bar
from cognate.errors import CognateError
from cognate.milvus.location import MilvusLocation
from cognate.records import STDIN, read_numbered_records
from cognate.searchable import Location, index_location
from cognate.wire import MAX_TEXTS_PER_CALL, IndexDescription

if TYPE_CHECKING:
    from cognate.index import IndexManifest

app = typer.Typer(help="Build indexes, and change those of a running server.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The name that the server has it under.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
UNCOUNTED = ("expected", "kept")
"""What a job's tally says only while it runs."""

PLOT_WIDTH, PLOT_HEIGHT = 60, 12


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
    destination: Annotated[
        str,
        typer.Option(
            "--out",
            help="The index's folder, or milvus://HOST:PORT/NAME, or milvus:FILE.db/NAME for milvus-lite.",
        ),
    ],
    backend: Annotated[
        Literal["faiss", "milvus"] | None,
        typer.Option(help="What keeps the index: a folder with FAISS, or Milvus. [default: as --out says]"),
    ] = None,
    device: EncodeDevice = "auto",
    kind: Annotated[
        Literal["auto", "flat", "hnsw", "ivf_flat", "ivf_pq", "ivf_fastscan", "cagra"],
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
        str | None,
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
    place = index_location(destination)
    _check_backend(backend, place)
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
    told = rejects_path(rejects, place if isinstance(place, Path) else place.local_path)
    tally = indexer.Tally()
    with keep_rejects(on_error, told) as kept, job_progress("records") as progress:

        def start(tally: indexer.Tally) -> None:
            if tally.resumed:
                note(f"going on with the job that was interrupted: {tally.resumed:,} records are done")
            if records == [STDIN]:
                note("standard input cannot be read again: if this job is interrupted, it cannot be resumed")
            note(f"encoding on {tally.device}")
            progress.begin(tally.resumed, tally.expected)

        def advance(count: int) -> None:
            progress.advance(count, f", {kept.count:,} rejects" if kept and kept.count else "")

        try:
            manifest = indexer.build(
                source,
                bundle,
                place,
                layout=Layout(kind, storage, factory, recall),
                device=device,
                force=force,
                rejects=kept,
                on_progress=advance,
                on_duplicate=on_duplicate,
                reuse=None if reuse is None else _folder(reuse, "reuse an index in a folder"),
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
    recall_told = "" if manifest.recall_at_10 is None else f"recall@10 {manifest.recall_at_10:.4f}, "
    out.print(
        f"{destination}: an index of {manifest.count:,} records, {manifest.kind}, "
        f"{manifest.dimension} dimensions, {recall_told}"
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


def _check_backend(backend: str | None, place: Location) -> None:
    in_milvus = isinstance(place, MilvusLocation)
    if backend is not None and (backend == "milvus") is not in_milvus:
        raise CognateError(
            f"--backend {backend} and --out {place} do not fit; with milvus, --out is "
            "milvus://HOST:PORT/NAME or milvus:FILE.db/NAME, and with faiss a folder"
        )


@app.command()
def update(
    folder: Annotated[str, typer.Argument(help="The index: a folder, or where it is in Milvus.")],
    bundle: Annotated[Path, typer.Option(help="The bundle that it was built with.")],
    upsert: Annotated[
        str | None,
        typer.Option(help="Records to write, each in the place of the one with its id; - is standard input."),
    ] = None,
    delete: Annotated[Path | None, typer.Option(help="Ids to delete before, one on each line.")] = None,
    device: EncodeDevice = "auto",
    on_error: OnError = "stop",
    rejects: RejectsFile = None,
    as_json: AsJson = False,
) -> None:
    """Write records to an index and delete others; what has changed is kept beside it, in INDEX.updates.

    Example: cognate index update index/ --bundle bundle/ --upsert new.jsonl --delete old.txt
    """
    with needs("serve"):
        import indexer
    place = index_location(folder)
    told = rejects_path(rejects, place if isinstance(place, Path) else place.local_path)
    with keep_rejects(on_error, told) as kept, progress_bar("records") as bar:
        task = bar.add_task("encoding", total=None, rate="")
        updated = indexer.update(
            place,
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
    note(f"encoded on {updated.device}")
    if updated.superseded:
        note(f"{updated.superseded} records had an id that a later one has too, and the last counts")
    if skipped:
        note(f"{skipped} bad lines were skipped; {told} says which and why")


@app.command()
def compact(
    folder: Annotated[str, typer.Argument(help="The index.")],
    as_json: AsJson = False,
) -> None:
    """Write an index anew with its updates in it, so that searching it is as quick as before them.

    Example: cognate index compact index/
    """
    with needs("serve"):
        from cognate.updates import IndexUpdates
    updates = IndexUpdates(_folder(folder, "Milvus compacts by itself"), device="cpu")
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
    folder: Annotated[str, typer.Argument(help="An index: a folder, or where it is in Milvus.")],
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
        from cognate.opening import open_index
        from cognate.update_log import read_log
        from cognate.updates import state_of, updates_folder
    place = index_location(folder)
    if isinstance(place, Path):
        manifest = IndexManifest.read(place)
        # Whether the updates are its own.
        state_of(place)
        log = read_log(updates_folder(place))
        described = manifest.model_dump(mode="json", exclude={"files"}, exclude_none=as_json is False)
        described["bytes"] = sum(digest.size for digest in manifest.files.values())
        if log is not None:
            state, changes = log
            described["updates"] = {**state._asdict(), "changed": len(changes)}
    else:
        with contextlib.closing(open_index(place)) as opened:
            manifest = opened.manifest
            described = manifest.model_dump(mode="json", exclude={"files"}, exclude_none=as_json is False)
            # What it holds now, and where the alias leads.
            described |= {"count": opened.count, "version": opened.version, "location": str(opened.location)}
    if as_json:
        print_json(described)
        return
    points = described.pop("tradeoff")
    for name, value in described.items():
        out.print(f"{name:14} {value}")
    if tradeoff and points:
        out.print(tradeoff_table(manifest))
        for line in tradeoff_plot(manifest):
            out.print(line, markup=False, highlight=False, no_wrap=True, crop=False)
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


def tradeoff_plot(manifest: "IndexManifest") -> list[str]:
    """What was measured as lines of text: recall@10 to the right, queries a second upwards, by powers of ten.

    What is used is marked by its letter, F, B or E; of several at one place the first of these.
    """
    rates = [math.log10(max(point.queries_per_second, 1e-9)) for point in manifest.tradeoff]
    recalls = [point.recall_at_10 for point in manifest.tradeoff]
    lowest, highest, least = min(rates), max(rates), min(recalls)
    grid = [[" "] * PLOT_WIDTH for _ in range(PLOT_HEIGHT)]
    used = {None: "E", manifest.search.get("balanced"): "B", manifest.search.get("fast"): "F"}
    marked = [
        (used.get(point.parameters, "*"), rate, recall)
        for point, rate, recall in zip(manifest.tradeoff, rates, recalls, strict=True)
    ]
    # What comes later hides what lies there.
    for mark, rate, recall in sorted(marked, key=lambda each: "*EBF".index(each[0])):
        row = round((highest - rate) / max(highest - lowest, 1e-9) * (PLOT_HEIGHT - 1))
        column = round((recall - least) / max(1 - least, 1e-9) * (PLOT_WIDTH - 1))
        grid[row][column] = mark
    edges = {0: f"{10**highest:,.0f}", PLOT_HEIGHT - 1: f"{10**lowest:,.0f}"}
    margin = max(map(len, edges.values()))
    lines = [f"{edges.get(number, ''):>{margin}} |{''.join(row)}".rstrip() for number, row in enumerate(grid)]
    scale = f"{least:.4f}{'1.0000':>{PLOT_WIDTH - 6}}"
    return [
        "queries/s",
        *lines,
        f"{'':>{margin}} +{'-' * PLOT_WIDTH}",
        f"{'':>{margin}}  {scale}",
        f"{'':>{margin}}  recall@10; F fast, B balanced, E exact, * tried",
    ]


@app.command()
def merge(
    indexes: Annotated[list[str], typer.Argument(help="At least two indexes of one bundle.")],
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
    why = "merge folders, and build the index in Milvus from the records of all"
    manifest = indexer.merge(
        [_folder(index, why) for index in indexes],
        destination,
        layout=Layout("auto"),
        on_duplicate=on_duplicate,
        force=force,
    )
    if as_json:
        print_json({**manifest.model_dump(mode="json", exclude={"files"}), "path": str(destination)})
        return
    out.print(f"{destination}: an index of {manifest.count:,} records, of {len(indexes)} indexes")


@app.command()
def verify(
    folder: Annotated[str, typer.Argument(help="An index: a folder, or where it is in Milvus.")],
    bundle: Annotated[Path, typer.Option(help="The bundle that it was built with.")],
    samples: Annotated[int, typer.Option(min=1, help="Records to encode again.")] = 1000,
    min_cosine: Annotated[
        float, typer.Option(min=-1, max=1, help="How near to its vector in the index each must be.")
    ] = 0.999,
    device: EncodeDevice = "auto",
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
    note(f"encoded on {verified.device}")


@app.command()
def export(
    folder: Annotated[str, typer.Argument(help="An index.")],
    destination: Annotated[Path, typer.Option("--out", help="A file ending in .parquet, .arrow or .npy.")],
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write an index's vectors and records to a file that other systems read.

    Example: cognate index export index/ --out vectors.parquet
    """
    with needs("serve"):
        import indexer
    why = "take the vectors out of Milvus with its own tools"
    paths = indexer.export(_folder(folder, why), destination, force=force)
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


def _folder(index: str, otherwise: str) -> Path:
    """The folder of an index; refused where it is in Milvus, with what to do instead."""
    place = index_location(index)
    if isinstance(place, MilvusLocation):
        raise CognateError(f"{place} is in Milvus, and this command takes indexes in folders; {otherwise}")
    return place


def _print_index(index: IndexDescription, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(index))
        return
    before = f"; version {index.previous_version} was before" if index.previous_version else ""
    out.print(f"{index.name}: version {index.version} serves, {index.count:,} records{before}")


def _as_json(index: IndexDescription) -> dict[str, object]:
    return {**dataclasses.asdict(index), "created_at": index.created_at.isoformat()}
