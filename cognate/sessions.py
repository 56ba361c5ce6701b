"""``Sessions``: a bundle's model, opened for runs that are alone and for runs side by side."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import onnxruntime

from cognate import bert_layers, bf16x3, operators
from cognate.bundle import Bundle
from cognate.devices import Device
from cognate.errors import ArtifactError
from cognate.graph_file import Change, map_graph
from cognate.providers import OUTPUT, Provider, model_in_memory, open_session

_log = logging.getLogger(__name__)


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
        self._mapped = map_graph(bundle.graph)
        self._arithmetic = operators.arithmetic()
        self._products = bf16x3.products(self._mapped) if self._arithmetic == "amx" else []
        self._layers = (
            bert_layers.find_layers(self._mapped, bundle.folder / "config.json") if self._arithmetic else None
        )
        read_by_operators = self._mapped.weights if self._products or self._layers else {}
        constants = self._mapped.tables | read_by_operators
        # By name, for all sessions, which share the memory and do not keep it themselves.
        self._constants = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(values) for name, values in constants.items()
        }
        self.provider, self._alone = self._open_checked(device, bulk=bulk)
        self.inputs = {value.name for value in self._alone.get_inputs()}
        one_for_all = bulk or threads == 1 or not self.provider.shares_threads
        self._one_thread = self._alone if one_for_all else None
        self._opening = threading.Lock()
        self._turn = threading.Lock() if self.provider.one_run_at_a_time else nullcontext()
        self._lock = threading.Lock()
        self._runs = 0

    @property
    def skips_padding(self) -> bool:
        """Whether a run calculates next to nothing for padding."""
        return self._layers is not None

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

    def _open_checked(self, device: Device, *, bulk: bool) -> tuple[Provider, onnxruntime.InferenceSession]:
        """Open the model, with its layers in one operator if it gives the graph's vectors."""
        try:
            provider, session = self._open(device, bulk=bulk)
        except ArtifactError:
            if self._layers is None:
                raise
        else:
            if provider.device != "cpu":
                self._layers = None
            max_length = self._bundle.manifest.max_length
            if self._layers is None or bert_layers.agrees(session, self._plain(), OUTPUT, max_length):
                return provider, session
        _log.warning("%s has layers that are left to onnxruntime, which is slower", self._bundle.graph)
        self._layers = None
        return self._open(device, bulk=bulk)

    def _open(self, device: Device, *, bulk: bool) -> tuple[Provider, onnxruntime.InferenceSession]:
        changes = self._changes(1 if bulk else self._threads)
        return open_session(
            self._bundle, device, self._threads, self._constants, self._mapped, changes, bulk=bulk
        )

    def _plain(self) -> onnxruntime.InferenceSession:
        """The graph as it is, made to be run once."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.intra_op_num_threads = 1
        model = model_in_memory(self._bundle, self._constants, self._mapped, [], options)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _changes(self, threads: int) -> list[Change]:
        """What puts operators of ours into the graph: of all layers, and of the products beside them."""
        layers = self._layers.changes(self._arithmetic, threads) if self._layers and self._arithmetic else []
        left = [
            each for each in self._products if not any(gone.start <= each.start < gone.end for gone in layers)
        ]
        return layers + left
