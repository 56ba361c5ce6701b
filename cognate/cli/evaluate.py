"""``cognate evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from cognate.artifact import kind_of
from cognate.cli.device import EncodeDevice
from cognate.cli.terminal import metrics_table, needs, note, out, print_json
from cognate.devices import Device
from cognate.errors import CognateError
from cognate.evaluation import DEFAULT_K, Evaluation, TextEncoder, read_queries_and_index
from cognate.evaluation import evaluate as evaluate_encoder
from cognate.records import Record


def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint, a bundle, a model name, a folder or hub id.")],
    queries: Annotated[Path, typer.Option(help="Records to search with.")],
    index: Annotated[Path, typer.Option(help="Records to search in.")],
    compare: Annotated[str | None, typer.Option(help="Another model, shown beside the first.")] = None,
    device: EncodeDevice = "auto",
    k: Annotated[int, typer.Option("--k", min=1, max=10_000, help="Hits to look at.")] = DEFAULT_K,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure how well a model finds the records of a query's label: nine metrics, exact search.

    Example: cognate evaluate minilm --queries queries.jsonl --index index.jsonl --compare checkpoint/
    """
    query_records, index_records = read_queries_and_index(queries, index)
    first = _evaluate(model, device, query_records, index_records, k)
    second = None if compare is None else _evaluate(compare, device, query_records, index_records, k)
    if as_json:
        document = {"model": model, **first.as_json()}
        if compare is not None and second is not None:
            document["compare"] = {"model": compare, **second.as_json()}
        print_json(document)
        return
    columns = {model: first.metrics}
    if compare is not None and second is not None:
        # Two columns even where both have one name.
        columns[compare if compare != model else f"{compare} again"] = second.metrics
    out.print(metrics_table(columns))
    out.print(f"k = {k}, {first.queries} queries, {first.records} records, exact cosine search")
    if first.skipped:
        note(f"{first.skipped} queries have no record of their label in the index and were left out")


def _evaluate(name: str, device: Device, queries: list[Record], index: list[Record], k: int) -> Evaluation:
    encoder, there = _encoder(name, device)
    note(f"evaluating {name} on {there} …")
    return evaluate_encoder(encoder, queries, index, k=k)


def _encoder(name: str, device: Device) -> tuple[TextEncoder, str]:
    """Load a model, and tell where it runs: a bundle by onnxruntime, anything else by torch."""
    if kind_of(Path(name)) == "bundle":
        with needs("serve"):
            from cognate.encoder import Encoder
        bundle = Encoder(name, device=device, bulk=True)
        return bundle, bundle.device
    if device not in ("auto", "cpu", "cuda"):
        raise CognateError(
            f"device {device} was asked for, but {name} is no bundle and runs in torch, on cpu or cuda; "
            "export it first, or use --device cpu"
        )
    with needs("train"):
        import trainer
    model = trainer.load_encoder(name, device=device)
    return model, model.model.device.type
