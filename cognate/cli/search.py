"""``cognate search``."""

from collections.abc import Sequence
from typing import Annotated, Literal

import typer
from rich.table import Table

from cognate.cli.connection import TARGET, Target, Tls, TlsCa, TlsClient, connect
from cognate.cli.terminal import note, out, print_json
from cognate.records import Hit
from cognate.wire import Combined, Like, Query


def search(
    text: Annotated[str | None, typer.Argument(help="What to search for.")] = None,
    target: Target = TARGET,
    top_k: Annotated[int, typer.Option(min=1, help="How many hits.")] = 10,
    index: Annotated[str | None, typer.Option(help="Name of the index, where there are several.")] = None,
    min_score: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Leave out hits with a smaller cosine.")
    ] = None,
    accuracy: Annotated[
        Literal["fast", "balanced", "exact"], typer.Option(help="What an index that is not flat may miss.")
    ] = "balanced",
    filter: Annotated[  # noqa: A002
        str | None,
        typer.Option(help="Which records may be found, such as 'lang = \"en\" and year >= 2020'."),
    ] = None,
    group_by_label: Annotated[
        bool, typer.Option("--group-by-label", help="Give only the best hit of each label.")
    ] = False,
    offset: Annotated[
        int | None, typer.Option(min=0, help="Pass over so many hits; the search is then exact.")
    ] = None,
    exclude_id: Annotated[
        list[str] | None, typer.Option(help="Leave out the record of this id. May be repeated.")
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="Instead of a text: search for what is like the record of this id.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="A text that is searched for together with the first one. May be repeated."),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="How much the first text or --like counts, then each --also. Default: 1 each."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")] = 10.0,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_client: TlsClient = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Ask a running server for the records that mean the same as a text.

    An API key comes from COGNATE_API_KEY in the environment.

    Example: cognate search "How do I learn Python?" --top-k 5
    """
    query: Query | None = text if like is None else Like(like)
    if query is None or (text is not None and like is not None):
        raise typer.BadParameter("give a text to search for, or --like ID, one of the two")
    if also or weight:
        parts = [query, *(also or ())]
        if weight and len(weight) != len(parts):
            raise typer.BadParameter(f"give --weight once for each of the {len(parts)} that are searched for")
        query = Combined(parts, weight or None)
    with connect(target, timeout, tls, tls_ca, tls_client) as client:
        hits = client.search(
            query,
            top_k=top_k,
            index=index,
            min_score=min_score,
            accuracy=accuracy,
            filter=filter,
            group_by_label=group_by_label,
            offset=offset,
            exclude_ids=exclude_id or (),
        )
    if as_json:
        print_json(
            [
                {
                    "id": hit.id,
                    "score": hit.score,
                    "text": hit.text,
                    "label": hit.label,
                    "attributes": hit.attributes,
                }
                for hit in hits
            ]
        )
        return
    if hits:
        out.print(hits_table(hits))
    if len(hits) < top_k:
        what = "labels" if group_by_label else "hits"
        bounds = [
            "" if min_score is None else f" with a score of at least {min_score}",
            "" if filter is None else " that match the filter",
            "" if offset is None else f" after the first {offset}",
        ]
        note(f"the index has {len(hits)} {what}{''.join(bounds)}, fewer than the {top_k} asked for")


def hits_table(hits: Sequence[Hit]) -> Table:
    """A table of hits, best first."""
    table = Table()
    for name, justify in (("score", "right"), ("id", "left"), ("label", "left"), ("text", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for hit in hits:
        table.add_row(f"{hit.score:.4f}", hit.id, hit.label or "", hit.text)
    return table
