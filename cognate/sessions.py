"""``Sessions``: a bundle's model, opened for runs that are alone and for runs side by side."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import onnxruntime

from cognate import bf16x3
from cognate.bundle import Bundle
from cognate.devices import Device
from cognate.graph_file import map_graph
from cognate.providers import Provider, open_session


class Sessions:
    """The model's sessions. Safe to use from several threads.

    On a processor a run that is alone has all threads, and ends sooner. Runs side by side have a thread each:
    of one session, each would wait for threads that the others have, and a tenth fewer texts would be encoded
    (benchmarks/README.md). That session is opened when it is first needed.

    Attributes:
        provider: Where the model runs.
        inputs: Names of the graph's inputs.
    """

    def __init__(self, bundle: Bundle, device: Device, threads: int, *, bulk: bool) -> None:
        """Open the model.

        Args:
            bundle: Opened.
            device: As for ``open_session``, as are its errors.
            threads: Cores to use on the CPU.
            bulk: Whether every run has one thread, alone or not.
        """
        self._bundle = bundle
        self._threads = threads
        mapped = map_graph(bundle.graph)
        self._products = bf16x3.products(mapped) if bf16x3.library() else []
        # By name, for all sessions, which share the memory and do not keep it themselves.
        self._constants = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(values)
            for name, values in (mapped.tables | (mapped.weights if self._products else {})).items()
        }
        self.provider, self._alone = self._open(device, bulk=bulk)
        self.inputs = {value.name for value in self._alone.get_inputs()}
        one_for_all = bulk or threads == 1 or not self.provider.shares_threads
        self._one_thread = self._alone if one_for_all else None
        self._opening = threading.Lock()
        self._turn = threading.Lock() if self.provider.one_run_at_a_time else nullcontext()
        self._lock = threading.Lock()
        self._runs = 0

    def open_all(self) -> None:
        """Open what is else opened by the first runs side by side."""
        self._beside()

    @contextmanager
    def session(self) -> Iterator[onnxruntime.InferenceSession]:
        """Give the session for a run, which ends with the context."""
        with self._turn:
            with self._lock:
                alone = not self._runs
                self._runs += 1
            try:
                yield self._alone if alone else self._beside()
            finally:
                with self._lock:
                    self._runs -= 1

    def _beside(self) -> onnxruntime.InferenceSession:
        with self._opening:
            if self._one_thread is None:
                _, self._one_thread = self._open(self.provider.device, bulk=True)
            return self._one_thread

    def _open(self, device: Device, *, bulk: bool) -> tuple[Provider, onnxruntime.InferenceSession]:
        return open_session(self._bundle, device, self._threads, self._constants, self._products, bulk=bulk)
