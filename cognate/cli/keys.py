"""``cognate keys``."""

from typing import Annotated

import typer

from cognate.cli.terminal import needs, note, out, print_json

app = typer.Typer(help="API keys of a server.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """API keys of a server."""


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Who gets it; for logs and refusals.")],
    right: Annotated[
        list[str], typer.Option(help="What it may do: encode, search, write or admin; repeat it for several.")
    ],
    index: Annotated[
        list[str] | None, typer.Option(help="An index it may use; repeat it. [default: all]")
    ] = None,
    calls_per_second: Annotated[float | None, typer.Option(help="How many calls. [default: any]")] = None,
    texts_per_second: Annotated[float | None, typer.Option(help="How many texts. [default: any]")] = None,
    burst_seconds: Annotated[float, typer.Option(help="How much of the two may come at once.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, the key in it.")] = False,
) -> None:
    """Make an API key: its entry for the server's file on standard output, the key itself beside it, once.

    Example: cognate keys new --name search-team --right search --index faq >> keys.toml
    """
    with needs("serve"):
        from serving.keys import Key, entry, hash_of, new_key
    made = new_key()
    key = Key.model_validate(
        {
            "name": name,
            "sha256": hash_of(made),
            "rights": right,
            "indexes": index or None,
            "calls_per_second": calls_per_second,
            "texts_per_second": texts_per_second,
            "burst_seconds": burst_seconds,
        }
    )
    if as_json:
        print_json({"key": made, "entry": entry(key)})
        return
    out.print(entry(key))
    note(f"the key of {name}, which is not stored and not shown again:\n{made}")
