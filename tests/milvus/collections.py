"""Indexes in milvus-lite, and a Milvus server that can be killed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cognate.bundle import Bundle
from cognate.index_kinds import Kind, Layout
from cognate.milvus.connection import MilvusConnection
from cognate.milvus.location import MilvusLocation, MilvusOptions
from cognate.milvus.publishing import publish
from cognate.records import Record


def publish_records(
    location: MilvusLocation,
    bundle: Bundle,
    records: Sequence[Record],
    vectors: NDArray[np.float32],
    *,
    note: Path,
    kind: Kind = "flat",
    force: bool = False,
) -> MilvusLocation:
    """Publish records with their vectors under an alias.

    Args:
        location: The alias.
        bundle: Whose vectors they are.
        records: Those.
        vectors: float32, shape (records, dimension).
        note: A file for the name of the collection meanwhile.
        kind: "flat" or "hnsw".
        force: Whether an alias that is there is switched.
    """
    numbered = [
        Record(record.text, record.label, record.id or str(row), record.attributes)
        for row, record in enumerate(records)
    ]
    with contextlib.closing(MilvusConnection(location, MilvusOptions(timeout=60))) as connection:
        publish(
            [(numbered, vectors)] if numbered else [],
            connection,
            bundle,
            Layout(kind),
            count=len(records),
            dimension=vectors.shape[1],
            force=force,
            note=note,
        )
    return location


@contextlib.contextmanager
def lite(folder: Path) -> Iterator[MilvusLocation]:
    """A file of milvus-lite for an alias named faq, let go of at the end."""
    from milvus_lite.server_manager import server_manager_instance

    file = str(folder / "milvus.db")
    yield MilvusLocation(file, "faq")
    server_manager_instance.release_server(file)


class Milvus:
    """A Milvus server, which is milvus-lite's, in a process of its own.

    Attributes:
        location: Of the alias faq.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.location = MilvusLocation(f"127.0.0.1:{self._port}", "faq")
        self._folder = folder
        self._process: Any = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        program = "import sys; from milvus_lite.cmdline import main; main(sys.argv[1:])"
        arguments = ["server", "--data-dir", str(self._folder), "--port", str(self._port)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        while True:
            assert self._process.poll() is None, "it did not start"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return

    def kill(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._process.wait()

    def hang(self) -> None:
        """Let it answer nothing, and keep its connections."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self._process.send_signal(signal.SIGCONT)
