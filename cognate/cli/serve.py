"""``cognate serve``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cognate.cli.terminal import needs, note, print_json


def serve(
    bundle: Annotated[Path | None, typer.Option(help="The bundle to encode with.")] = None,
    index: Annotated[
        list[str] | None, typer.Option(help="[NAME=]INDEX to search in; repeat it for several.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all. [default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. [default: 50051]")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option(help="Where model and indexes run. [default: auto]"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the model. [default: the cores there are]")
    ] = None,
    max_texts: Annotated[int | None, typer.Option(help="Texts of a call. [default: 1024]")] = None,
    max_text_bytes: Annotated[int | None, typer.Option(help="Bytes of a text. [default: 65536]")] = None,
    max_top_k: Annotated[int | None, typer.Option(help="Hits for a query. [default: 1000]")] = None,
    max_message_bytes: Annotated[
        int | None, typer.Option(help="Bytes of a request. [default: 16777216]")
    ] = None,
    max_batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a batch, padding included. [default: by device]")
    ] = None,
    max_queue_tokens: Annotated[
        int | None, typer.Option(help="Tokens waiting before calls are refused. [default: 128 batches]")
    ] = None,
    grace_seconds: Annotated[
        float | None, typer.Option(help="Time for calls under way when told to stop. [default: 20]")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file of the server's certificate; listens with TLS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its private key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file of roots; clients must show a certificate from one.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="A file of API keys, of which each call must have one.")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the calls that change indexes, alone.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the port. [default: 1]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings by name.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings that hold, as JSON, and exit.")
    ] = False,
) -> None:
    """Answer Encode and Search over gRPC until SIGTERM or Ctrl-C, then finish what is under way.

    SIGHUP reads the keys and the certificate again.

    Each setting comes from its flag, else from the environment (COGNATE_PORT, …), else from the TOML file.

    Example: cognate serve --bundle bundle/ --index index/
    """
    with needs("serve"):
        import serving
    settings = serving.Settings.load(
        bundle=bundle,
        indexes=index,
        host=host,
        port=port,
        device=device,
        threads=threads,
        max_texts=max_texts,
        max_text_bytes=max_text_bytes,
        max_top_k=max_top_k,
        max_message_bytes=max_message_bytes,
        max_batch_tokens=max_batch_tokens,
        max_queue_tokens=max_queue_tokens,
        grace_seconds=grace_seconds,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        keys=keys,
        admin_port=admin_port,
        workers=workers,
        config=config,
    )
    if print_config:
        print_json(settings.model_dump(mode="json"))
        return

    if danger := serving.exposure(settings):
        note(f"warning: {danger}")
    names = ", ".join(settings.indexes) or "none, so that it only encodes"

    def on_ready(server: serving.Server) -> None:
        note(f"serving on {server.address} (indexes: {names}); Ctrl-C stops it")
        if server.admin_port is not None:
            note(f"administration on port {server.admin_port}")

    def all_ready(address: str) -> None:
        note(f"serving on {address} with {settings.workers} workers (indexes: {names}); Ctrl-C stops it")

    if settings.workers > 1:
        serving.run_workers(settings, all_ready)
    else:
        serving.run(settings, on_ready)
    note("stopped")
