"""``cognate data pairs``, ``cognate data check`` and ``cognate data synthesize``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cognate.cli.rejects import OnError, RejectsFile, keep_rejects, rejects_path
from cognate.cli.terminal import needs, note, out, print_json, progress_bar
from cognate.data_check import ROLES, Role, check_data, role_of
from cognate.errors import CognateError
from cognate.pairs import write_dataset
from cognate.records import read_records

app = typer.Typer(help="Make record files, and find what is wrong with them.", no_args_is_help=True)


@app.command()
def pairs(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS",
            help="CSV or TSV: question1, question2, is_duplicate, or two columns of duplicates.",
        ),
    ],
    destination: Annotated[Path, typer.Option("--out", help="The folder of the three record files.")],
    evaluation_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the labels that is kept for evaluation.")
    ] = 0.2,
    max_distractors: Annotated[
        int | None,
        typer.Option(
            min=0, help="Texts without a duplicate to put in the index. [default: as many as it has others]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which labels are kept for evaluation.")] = 0,
    on_error: OnError = "stop",
    rejects: RejectsFile = None,
    force: Annotated[bool, typer.Option(help="Replace a data set that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Turn pairs of duplicates into train.jsonl, queries.jsonl and index.jsonl.

    Texts that duplicates connect, directly or through others, get one label. Labels of the evaluation
    (queries and index) never occur in train.

    Example: cognate data pairs quora_duplicate_questions.tsv --out data/
    """
    told = rejects_path(rejects, destination)
    with keep_rejects(on_error, told) as kept:
        counts = write_dataset(
            source,
            destination,
            seed=seed,
            evaluation_fraction=evaluation_fraction,
            max_distractors=max_distractors,
            rejects=kept,
            force=force,
        ).counts
    if as_json:
        print_json(counts.model_dump() | {"path": str(destination)})
        return
    out.print(
        f"{counts.pairs:,} pairs, {counts.duplicate_pairs:,} of them duplicates, connect {counts.texts:,} "
        f"texts into {counts.labels:,} labels"
    )
    for name, records, what in (
        ("train", counts.train, f"{counts.train_labels:,} labels"),
        ("queries", counts.queries, "one of each label of the evaluation"),
        ("index", counts.index, f"the others of those labels, and {counts.distractors:,} distractors"),
    ):
        out.print(f"{destination / name}.jsonl: {records:,} records, {what}")
    if counts.contradictions:
        note(
            f"{counts.contradictions:,} pairs are marked as different though others connect them, such as on "
            f"line {', '.join(map(str, counts.contradiction_lines))}; they were taken as duplicates"
        )
    if counts.rejected_lines:
        note(f"{counts.rejected_lines:,} bad lines were skipped; {told} says which and why")


@app.command()
def check(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="[ROLE=]FILE...",
            help="Record files; ROLE is train, queries or index, and is taken from the name where it is one.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what is in record files and what is wrong with them; exit code 1 where that is an error.

    Finds bad lines, empty and duplicate texts, labels with a single record, and texts or labels that leak
    from evaluation into training.

    Example: cognate data check train.jsonl queries.jsonl index.jsonl
    """
    report = check_data([_with_role(file) for file in files])
    failed = any(finding.severity == "error" for finding in report.findings)
    if as_json:
        print_json(report.as_json())
        raise typer.Exit(int(failed))
    table = Table()
    for name in ("file", "records", "labels", "largest label", "bad lines"):
        table.add_column(name, justify="left" if name == "file" else "right")
    for file in report.files:
        numbers = (file.records, file.labels, file.largest_label, file.bad_lines + file.empty_texts)
        table.add_row(file.source, *(f"{number:,}" for number in numbers))
    out.print(table)
    for finding in report.findings:
        examples = f" ({', '.join(finding.examples)})" if finding.examples else ""
        out.print(f"{finding.severity}: {finding.message}{examples}")
    if not report.findings:
        out.print("nothing to object to")
    raise typer.Exit(int(failed))


@app.command()
def synthesize(
    queries: Annotated[Path, typer.Argument(help="Records to ask; they need no labels.")],
    corpus: Annotated[Path, typer.Argument(help="Records to search; they need no labels.")],
    destination: Annotated[Path, typer.Option("--out", help="The JSON Lines file of the triplets.")],
    cross_encoder: Annotated[str, typer.Option(help="What scores the candidates: a folder, or a hub id.")],
    model: Annotated[str, typer.Option(help="What finds them; as for train.")] = "minilm",
    candidates: Annotated[int, typer.Option(min=2, help="Nearest records that are scored.")] = 50,
    negatives: Annotated[int, typer.Option(min=1, help="Triplets of a query, at most.")] = 4,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Of a positive, at least; scores are from 0 to 1.")
    ] = 0.5,
    margin: Annotated[float, typer.Option(min=0, max=1, help="By how much less a negative must have.")] = 0.3,
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make triplets to train on from queries and records without labels.

    The model finds the records nearest to each query; the cross-encoder scores them. The best is the
    positive; the nearest ones that score less by the margin are negatives.

    Example: cognate data synthesize queries.jsonl corpus.jsonl --cross-encoder reranker/ --out triplets.jsonl
    """
    if destination.exists() and not force:
        raise CognateError(f"{destination} exists; give another file, or --force to replace it")
    asked, searched = list(read_records(queries)), list(read_records(corpus))
    with needs("train"):
        from trainer.encoder import load_encoder
        from trainer.synthesis import load_cross_encoder, synthesize
    note("loading the libraries and the models …")
    found = synthesize(
        asked,
        searched,
        load_encoder(model),
        load_cross_encoder(cross_encoder),
        candidates=candidates,
        negatives=negatives,
        min_score=min_score,
        margin=margin,
    )
    partial = destination.with_name(f".{destination.name}.partial")
    written = used = 0
    try:
        with partial.open("w", encoding="utf-8") as file, progress_bar("queries") as bar:
            task = bar.add_task("scoring", total=len(asked), rate="")
            for triplets in found:
                lines = [json.dumps(asdict(triplet), ensure_ascii=False) + "\n" for triplet in triplets]
                file.writelines(lines)
                written, used = written + len(lines), used + bool(lines)
                bar.update(task, advance=1, rate=f"{bar.tasks[task].speed or 0:.1f}")
        if not written:
            raise CognateError(
                "no query has both a positive and a negative; try a smaller --min-score or --margin, or more "
                "--candidates"
            )
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)
    if as_json:
        print_json({"path": str(destination), "triplets": written, "queries": len(asked), "used": used})
        return
    out.print(f"{destination}: {written:,} triplets of {used:,} of {len(asked):,} queries")


def _with_role(file: str) -> tuple[str, Role | None]:
    before, equals, after = file.partition("=")
    for role in ROLES:
        if equals and before == role:
            return after, role
    return file, role_of(file)
