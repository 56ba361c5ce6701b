"""``cognate encode``."""

from typing import Annotated, Literal

import typer

from cognate.cli.connection import TARGET, Target, Tls, TlsCa, TlsClient, connect
from cognate.cli.terminal import note, out, print_json


def encode(
    texts: Annotated[list[str], typer.Argument(help="What to encode.")],
    target: Target = TARGET,
    input_type: Annotated[
        Literal["query", "passage"], typer.Option(help="What the texts are for: picks the prompt.")
    ] = "passage",
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")] = 10.0,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_client: TlsClient = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, vectors in full.")
    ] = False,
) -> None:
    """Ask a running server for the embeddings of texts.

    An API key comes from COGNATE_API_KEY in the environment.

    Example: cognate encode "How do I learn Python?" --json
    """
    with connect(target, timeout, tls, tls_ca, tls_client) as client:
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
