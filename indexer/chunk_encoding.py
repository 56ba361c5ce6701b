"""Where the texts of a job's chunks are encoded: here, or by workers of a Ray cluster (``ray_encoding``)."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from cognate.bundle import Bundle
from cognate.devices import Device
from cognate.encoder import Encoder
from cognate.errors import CognateError
from cognate.index_kinds import build_approximate

OnProgress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Cluster:
    """The Ray cluster that encodes.

    Attributes:
        address: HOST:PORT of its head, or "auto" for the one that this machine belongs to; None starts one of
            this machine alone, for the length of the job.
        workers: How many encoders; None is as many as it has room for.
        cpus: Cores of each.
        gpus: GPUs of each, up to 1; 0.5 puts two on a GPU. None is 1 for a device that is no CPU, else 0.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: float | None = None


class ChunkEncoder(Protocol):
    """Encodes the texts of chunks, and does what else takes long.

    Attributes:
        device: Where it encodes: "cpu", "cuda", …
        at_once: How many chunks to give to it before the first is taken back.
    """

    device: str
    at_once: int

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop what was not taken back."""

    def submit(self, texts: Sequence[str], on_progress: OnProgress) -> "Future[NDArray[np.float32]]":
        """Begin to encode texts; the result is float32 of shape (texts, dimension).

        Args:
            texts: Of one chunk; the same ones have the same vectors, bit for bit.
            on_progress: Called with the number of texts done since the last call, in another thread.
        """
        ...

    def build_approximate(self, factory: str, vectors: NDArray[np.float32]) -> faiss.Index:
        """Do what ``cognate.index_kinds.build_approximate`` does."""
        ...


class _Stopped(Exception):  # noqa: N818, no error
    """Ends the encoding of a chunk that nobody waits for any more."""


class LocalEncoder:
    """Encodes on this machine, one chunk after another, in a thread."""

    at_once = 1

    def __init__(self, bundle: Bundle, device: Device) -> None:
        """Load the bundle's model.

        Raises:
            CognateError: The bundle cannot be run, or there is no such device.
        """
        self._encoder = Encoder(bundle, device=device, bulk=True)
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1, "encode-chunk")
        self.device: str = self._encoder.device

    def __enter__(self) -> Self:
        """Return the encoder."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop between two batches."""
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)

    def submit(self, texts: Sequence[str], on_progress: OnProgress) -> "Future[NDArray[np.float32]]":
        """Begin to encode a chunk."""

        def advance(count: int) -> None:
            if self._stop.is_set():
                raise _Stopped
            on_progress(count)

        return self._thread.submit(lambda: self._encoder.encode(texts, on_progress=advance))

    def build_approximate(self, factory: str, vectors: NDArray[np.float32]) -> faiss.Index:
        """Learn and fill an index, with all cores."""
        return build_approximate(factory, vectors)


def open_encoder(
    bundle: Bundle, device: Device, cluster: Cluster | None, on_note: Callable[[str], None]
) -> ChunkEncoder:
    """Make what encodes a job's chunks.

    Args:
        bundle: The bundle.
        device: Where to encode.
        cluster: None is this machine, without Ray.
        on_note: Called with a sentence for people about the cluster, in any thread.

    Raises:
        CognateError: The bundle cannot be run, there is no such device, or no such cluster.
    """
    if cluster is None:
        return LocalEncoder(bundle, device)
    try:
        from indexer.ray_encoding import RayEncoder
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise CognateError(
            "--engine ray needs the package ray, which is not installed: pip install 'cognate[distributed]'"
        ) from error
    return RayEncoder(bundle, device, cluster, on_note)
