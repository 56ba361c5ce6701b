"""``cognate demo``: the whole pipeline on the sample data, each step with the command that does it alone."""

import contextlib
import importlib.resources
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cognate.cli.device import EncodeDevice
from cognate.cli.search import hits_table
from cognate.cli.terminal import metrics_table, needs, out, progress_bar
from cognate.client import Client
from cognate.errors import CognateError
from cognate.evaluation import Evaluation
from cognate.records import Record, read_records

EPOCHS = 1
BATCH_SIZE = 32
LEARNING_RATE = 1e-4
IMPROVED = 3
SHOWN_HITS = 3
START_SECONDS = 60.0
DEFAULT_PORT = 50051


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where everything is written.")] = Path(
        "cognate-demo"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server.")] = DEFAULT_PORT,
    device: EncodeDevice = "auto",
    once: Annotated[bool, typer.Option("--once", help="Stop the server at the end, and exit.")] = False,
) -> None:
    """Run the whole pipeline on the sample data: train, export, index, serve, search.

    Example: cognate demo --once
    """
    _check_port(port)
    with needs("train"):
        import exporter
        import indexer
        import trainer
        from cognate.providers import check_available
    check_available(device)
    there = "" if device == "auto" else f" --device {device}"

    data, checkpoint, bundle, index = (folder / name for name in ("data", "checkpoint", "bundle", "index"))
    data.mkdir(parents=True, exist_ok=True)
    for name in ("train", "queries", "index"):
        with importlib.resources.as_file(
            importlib.resources.files("cognate") / f"sample/{name}.jsonl"
        ) as sample:
            shutil.copyfile(sample, data / sample.name)

    out.print("Questions to the support of an imaginary product, Loomstead. Its members have three or four")
    out.print("names for each thing, which no published model has ever heard. Can training teach them?\n")
    with (
        _step(
            "1. Fine-tune the published MiniLM on questions that mean the same",
            f"cognate train {data}/train.jsonl --queries {data}/queries.jsonl --index {data}/index.jsonl "
            f"--epochs {EPOCHS} --batch-size {BATCH_SIZE} --learning-rate {LEARNING_RATE} --out {checkpoint} "
            "--force",
        ),
        progress_bar("steps") as bar,
    ):
        task = bar.add_task("training", total=None, rate="")
        run = trainer.fit(
            "minilm",
            data / "train.jsonl",
            queries=data / "queries.jsonl",
            index=data / "index.jsonl",
            out=checkpoint,
            force=True,
            epochs=EPOCHS,
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            on_progress=lambda progress: bar.update(task, completed=progress.step, total=progress.steps),
        )
    before, after = run.evaluations[0], run.evaluations[-1]
    out.print(metrics_table({"before": before.metrics, "after": after.metrics}))
    out.print(
        f"{after.queries} queries, {after.records} records, k = {after.k}; none of their labels is in the "
        "training data\n"
    )
    queries = list(read_records(data / "queries.jsonl"))
    records = list(read_records(data / "index.jsonl"))
    improved = _most_improved(before, after)
    out.print("Three queries whose results improved (* marks a record that means the same):")
    for row in improved:
        _show_improvement(row, before, after, queries, records)

    with _step("2. Export it to ONNX", f"cognate export {checkpoint} --out {bundle} --force"):
        manifest = exporter.export(checkpoint, bundle, force=True).manifest
    out.print(
        f"   vectors equal torch's: smallest cosine {manifest.parity.min_cosine:.7f} over "
        f"{manifest.parity.texts} texts\n"
    )

    with _step(
        "3. Build the index",
        f"cognate index build {data}/index.jsonl --bundle {bundle} --out {index} --force{there}",
    ):
        built = indexer.build(data / "index.jsonl", bundle, index, device=device, force=True, restart=True)
    out.print(f"   {built.count} records, {built.kind} (exact), {built.dimension} dimensions\n")

    serving = ["cognate", "serve", "--bundle", str(bundle), "--index", str(index), "--port", str(port)]
    serving += shlex.split(there)
    target = f"localhost:{port}"
    with contextlib.ExitStack() as stack:
        with _step("4. Serve", shlex.join(serving)):
            server = stack.enter_context(_server(serving))
            client = stack.enter_context(Client(target))
            _wait_until_ready(server, client)
        out.print(f"   gRPC on {target}\n")
        where = "" if port == DEFAULT_PORT else f" --target {target}"
        asked = [queries[row].text for row in improved]
        with _step("5. Search", f"cognate search {shlex.quote(asked[0])} --top-k {SHOWN_HITS}{where}"):
            answers = client.search_many(asked, top_k=SHOWN_HITS)
        for text, hits in zip(asked, answers, strict=True):
            out.print(f"\n   {text}")
            out.print(hits_table(hits))
        if once:
            out.print(f"\nAll of it is in {folder}; the server was stopped, as --once asks.")
            return
        out.print("\nThe server is up. From another terminal, try:")
        out.print(f'   cognate search "the nanny says no although my stripe is fine"{where}')
        out.print("Ctrl-C stops it.")
        # Blocked, or the handlers of the command line would run; the server's own end wakes it too.
        ends = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        if signal.sigwait(ends) == signal.SIGCHLD:
            raise CognateError(f"the server ended with exit code {server.wait()}; its messages are above")
        out.print(f"\nStopped. All of it is in {folder}.")


@contextlib.contextmanager
def _step(title: str, command: str) -> Iterator[None]:
    out.print(title)
    out.print(f"   $ {command}")
    started = time.monotonic()
    yield
    out.print(f"   done in {time.monotonic() - started:.1f} s")


def _check_port(port: int) -> None:
    """Refuse a taken port before the work, not after it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise CognateError(
                f"port {port} is in use; give another with --port, or stop what uses it"
            ) from None


@contextlib.contextmanager
def _server(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server as a process of its own, as a user would: it never loads torch."""
    # A session of its own: Ctrl-C in the terminal is for the demo, which then stops the server in order.
    with subprocess.Popen([sys.executable, "-m", *command], start_new_session=True) as server:
        try:
            yield server
        finally:
            server.terminate()
            server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], client: Client) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not client.is_ready(timeout=1.0):
        if server.poll() is not None:
            raise CognateError(f"the server ended with exit code {server.returncode}; its messages are above")
        if time.monotonic() > deadline:
            raise CognateError(
                f"the server was not ready after {START_SECONDS:.0f} s; try cognate serve by hand"
            )
        time.sleep(0.05)


def _most_improved(before: Evaluation, after: Evaluation) -> list[int]:
    """The rows of the queries whose average precision rose most."""
    gains = after.per_query["average_precision"] - before.per_query["average_precision"]
    return [int(after.query_rows[position]) for position in (-gains).argsort(kind="stable")[:IMPROVED]]


def _show_improvement(
    row: int, before: Evaluation, after: Evaluation, queries: Sequence[Record], records: Sequence[Record]
) -> None:
    out.print(f"\n   {queries[row].text}")
    for name, evaluation in (("before", before), ("after", after)):
        position = int((evaluation.query_rows == row).argmax())
        for place in range(SHOWN_HITS):
            found = records[evaluation.rows[position, place]]
            mark = "*" if found.label == queries[row].label else " "
            score = evaluation.scores[position, place]
            out.print(f"   {name if place == 0 else '':6} {mark} {score:.3f}  {found.text}")
    out.print()
