"""``cognate encode``."""

from typing import Annotated, Literal

import typer

from cognate.cli.terminal import note, out, print_json
from cognate.client import Client

TARGET = "localhost:50051"


def encode(
    texts: Annotated[list[str], typer.Argument(help="What to encode.")],
    target: Annotated[str, typer.Option(help="HOST:PORT of the server.", envvar="COGNATE_TARGET")] = TARGET,
    input_type: Annotated[
        Literal["query", "passage"], typer.Option(help="What the texts are for: picks the prompt.")
    ] = "passage",
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")] = 10.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, vectors in full.")
    ] = False,
) -> None:
    """Ask a running server for the embeddings of texts.

    Example: cognate encode "How do I learn Python?" --json
    """
    with Client(target, timeout=timeout) as client:
        answer = client.encode(texts, input_type=input_type)
    if as_json:
        print_json(
            {
                "model": answer.model,
                "fingerprint": answer.fingerprint,
                "embeddings": [[float(value) for value in vector] for vector in answer.vectors],
                "tokens": list(answer.tokens),
                "truncated": list(answer.truncated),
            }
        )
        return
    for text, vector, tokens, truncated in zip(
        texts, answer.vectors, answer.tokens, answer.truncated, strict=True
    ):
        start = ", ".join(f"{value:+.4f}" for value in vector[:6])
        cut = ", truncated" if truncated else ""
        out.print(f"[{start}, …] {len(vector)} dimensions, {tokens} tokens{cut}: {text}")
    note(f"model {answer.model}, fingerprint {answer.fingerprint[:12]}; --json prints whole vectors")
