"""``cognate serve``."""

import logging
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from cognate.cli.terminal import needs, note, print_json
from cognate.devices import Device, IndexDevice, IndexGpus

_log = logging.getLogger(__name__)


def serve(
    bundle: Annotated[Path | None, typer.Option(help="The bundle to encode with.")] = None,
    index: Annotated[
        list[str] | None,
        typer.Option(
            help="[NAME=]INDEX to search in, a folder or milvus://HOST:PORT/NAME; repeat it for several."
        ),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(help="A folder where jobs publish indexes, as NAME/VERSION; the newest is served."),
    ] = None,
    watch_seconds: Annotated[
        float | None, typer.Option(help="Time between two looks into it. [default: 5]")
    ] = None,
    index_root: Annotated[
        list[Path] | None,
        typer.Option(help="A folder below which `cognate index load` may load; repeat it for several."),
    ] = None,
    admin: Annotated[
        bool | None, typer.Option("--admin", help="Let whoever reaches the port load and unload indexes.")
    ] = None,
    updates: Annotated[
        bool | None, typer.Option("--updates", help="Take upserts and deletes, and keep them beside INDEX.")
    ] = None,
    compact_after: Annotated[
        int | None, typer.Option(help="Changed records before an index is written anew. [default: 10000]")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all. [default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. [default: 50051]")
    ] = None,
    device: Annotated[
        Device | None,
        typer.Option(help="Where the model runs: auto is cuda where it starts, else cpu. [default: auto]"),
    ] = None,
    index_device: Annotated[
        IndexDevice | None, typer.Option(help="Where indexes are searched. [default: as the model]")
    ] = None,
    index_gpus: Annotated[
        IndexGpus | None,
        typer.Option(help="An index on one GPU, or on all: as copies, or in parts. [default: one]"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the model. [default: the cores there are]")
    ] = None,
    max_texts: Annotated[int | None, typer.Option(help="Texts of a call. [default: 1024]")] = None,
    max_text_bytes: Annotated[int | None, typer.Option(help="Bytes of a text. [default: 65536]")] = None,
    max_top_k: Annotated[int | None, typer.Option(help="Hits for a query. [default: 1000]")] = None,
    max_message_bytes: Annotated[
        int | None, typer.Option(help="Bytes of a request. [default: 4194304]")
    ] = None,
    max_batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a batch, padding included. [default: by device]")
    ] = None,
    max_queue_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens waiting before calls are refused. [default: 128 batches/core]"),
    ] = None,
    max_calls: Annotated[
        int | None, typer.Option(help="Calls under way before others are refused. [default: 1024]")
    ] = None,
    max_streams: Annotated[
        int | None, typer.Option(help="Streams among them before others are refused. [default: 64]")
    ] = None,
    max_inflight_bytes: Annotated[
        int | None,
        typer.Option(help="Bytes of requests and answers before calls are refused. [default: 268435456]"),
    ] = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="Of query vectors to keep; 0 for none. [default: 16777216]")
    ] = None,
    grace_seconds: Annotated[
        float | None, typer.Option(help="Time for calls under way when told to stop. [default: 20]")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port for Prometheus and cognate top; 0 takes a free one. [default: none]"
        ),
    ] = None,
    metrics_host: Annotated[
        str | None, typer.Option(help="Address of the metrics port. [default: 127.0.0.1]")
    ] = None,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(help="Of the log, on standard error. [default: text]")
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="debug has a line for each call. [default: info]"),
    ] = None,
    log_sample: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of calls that have a line. [default: 1]")
    ] = None,
    log_texts: Annotated[
        bool | None, typer.Option("--log-texts", help="Tell texts in those lines. [default: no]")
    ] = None,
    channelz: Annotated[
        bool | None, typer.Option("--channelz", help="Answer grpc.channelz.v1, for debugging. [default: no]")
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
    milvus_consistency: Annotated[
        Literal["strong", "bounded", "session", "eventually"] | None,
        typer.Option(help="How new what a search in Milvus finds must be. [default: session]"),
    ] = None,
    milvus_timeout: Annotated[
        float | None, typer.Option(help="Seconds until a call to Milvus is given up. [default: 5]")
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

    SIGHUP reads the keys and the certificate again, and looks again at the folder of each index.

    Each setting comes from its flag, else from the environment (COGNATE_PORT, …), else from the TOML file.

    Example: cognate serve --bundle bundle/ --index index/
    """
    with needs("serve"):
        import serving
    settings = serving.Settings.load(
        bundle=bundle,
        indexes=index,
        watch=watch,
        watch_seconds=watch_seconds,
        index_roots=index_root,
        admin=admin,
        updates=updates,
        compact_after=compact_after,
        host=host,
        port=port,
        device=device,
        index_device=index_device,
        index_gpus=index_gpus,
        threads=threads,
        max_texts=max_texts,
        max_text_bytes=max_text_bytes,
        max_top_k=max_top_k,
        max_message_bytes=max_message_bytes,
        max_batch_tokens=max_batch_tokens,
        max_queue_tokens=max_queue_tokens,
        max_calls=max_calls,
        max_streams=max_streams,
        max_inflight_bytes=max_inflight_bytes,
        cache_bytes=cache_bytes,
        grace_seconds=grace_seconds,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        log_format=log_format,
        log_level=log_level,
        log_sample=log_sample,
        log_texts=log_texts,
        channelz=channelz,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        keys=keys,
        admin_port=admin_port,
        milvus_consistency=milvus_consistency,
        milvus_timeout=milvus_timeout,
        workers=workers,
        config=config,
    )
    if wrong := serving.misspelt(os.environ):
        note(f"warning: {wrong}")
    if print_config:
        print_json(settings.model_dump(mode="json"))
        return

    def on_ready(server: serving.Server) -> None:
        names = ", ".join(server.indexes.names()) or "none, so that it only encodes"
        _log.info("serving on %s (indexes: %s); Ctrl-C stops it", server.address, names)
        if server.admin_port is not None:
            _log.info("administration on port %d", server.admin_port)
        if server.metrics_port is not None:
            _log.info(
                "metrics on http://%s/metrics", serving.address_of(settings.metrics_host, server.metrics_port)
            )

    def all_ready(address: str, admin_port: int | None, metrics_port: int | None) -> None:
        _log.info("serving on %s with %d workers; Ctrl-C stops it", address, settings.workers)
        if admin_port is not None:
            _log.info("administration on port %d", admin_port)
        if metrics_port is not None:
            _log.info("metrics on http://%s/metrics", serving.address_of(settings.metrics_host, metrics_port))

    if danger := serving.exposure(settings):
        note(f"warning: {danger}")
    if settings.workers > 1:
        serving.run_workers(settings, all_ready)
    else:
        serving.run(settings, on_ready)
