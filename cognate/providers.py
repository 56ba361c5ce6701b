"""Where the model runs: onnxruntime's execution providers, by the device that a user names."""

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime

from cognate import operators
from cognate.bundle import Bundle
from cognate.devices import Device, check_device
from cognate.errors import ArtifactError, CognateError
from cognate.graph_file import Change, MappedGraph, rewritten
from cognate.memory import give_back_free_memory

OUTPUT = "sentence_embedding"

ONNXRUNTIME_LIBRARIES = Path(onnxruntime.__file__).parent / "capi"

# Nothing that runs here is anybody else's business.
onnxruntime.disable_telemetry_events()

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provider:
    """A device, and what suits it.

    Attributes:
        device: As the user names it.
        name: onnxruntime's.
        package: What to install where onnxruntime has not got it.
        max_batch_tokens: Tokens of a batch, padding included.
        bulk_batch_tokens: The same in a job that only encodes many texts; None where it is the same number.
        max_batch_texts: Texts of a batch.
        run_tokens: What a run of the model costs beside its tokens, counted in tokens.
        length_multiple: Batches are padded to a multiple of so many tokens, so that there are few shapes
            to choose kernels and take memory for, and few that end within a vector or tile of the processor.
        length_padding: Where no more tokens than these are missing.
        memory: Where the vectors lie when a run ends, by onnxruntime's name.
        own_cores: Whether it calculates on the processor's cores, as many runs side by side as there are.
        shares_threads: Whether the threads of a session are for all of its runs.
        plugin: The module that brings it to any onnxruntime; None where it is built in or not there.
        options: onnxruntime's, for this provider.
        before: Providers that take the operators it cannot run, but for the CPU, which always does.
        library: The file that brings it, in onnxruntime's folder, and wants libraries of others; None where
            it is a part of onnxruntime.
        one_run_at_a_time: Whether a session may not run in two threads at once.
    """

    device: Device
    name: str
    package: str
    max_batch_tokens: int = 512
    bulk_batch_tokens: int | None = None
    max_batch_texts: int = 64
    run_tokens: int = 4
    length_multiple: int = 1
    length_padding: int = 15
    memory: str = "cpu"
    own_cores: bool = False
    shares_threads: bool = False
    plugin: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    library: str | None = None
    one_run_at_a_time: bool = False


# TF32 multiplies with 10 bits of mantissa, which is not the float32 that the manifest's parity speaks of;
# who wants speed exports fp16.
_CUDA = {"use_tf32": "0"}

PROVIDERS: dict[Device, Provider] = {
    provider.device: provider
    for provider in (
        # What waits is divided among the cores. Where there is always more of like length, larger batches
        # gain some hundredths where padding costs as much as tokens do (benchmarks/README.md).
        Provider(
            "cpu",
            "CPUExecutionProvider",
            "cognate[serve]",
            max_batch_tokens=256,
            bulk_batch_tokens=512,
            own_cores=True,
            shares_threads=True,
        ),
        Provider(
            "cuda",
            "CUDAExecutionProvider",
            "cognate[serve-gpu]",
            max_batch_tokens=65536,
            max_batch_texts=1024,
            run_tokens=4096,
            length_multiple=16,
            memory="cuda",
            options=_CUDA,
            library="libonnxruntime_providers_cuda.so",
        ),
        Provider(
            "tensorrt",
            "TensorrtExecutionProvider",
            "cognate[serve-gpu] and tensorrt-cu13<11",
            max_batch_tokens=65536,
            max_batch_texts=1024,
            run_tokens=4096,
            length_multiple=16,
            memory="cuda",
            before=("CUDAExecutionProvider",),
            library="libonnxruntime_providers_tensorrt.so",
        ),
        Provider(
            "openvino",
            "OpenVINOExecutionProvider",
            "cognate[openvino]",
            # A run in bf16 of texts of 10 to 15 tokens takes up to a quarter longer than one of 16, and so on
            # (benchmarks/README.md).
            length_multiple=16,
            length_padding=6,
            own_cores=True,
            plugin="onnxruntime_ep_openvino",
        ),
        Provider(
            "coreml", "CoreMLExecutionProvider", "onnxruntime on a Mac", options={"ModelFormat": "MLProgram"}
        ),
        Provider("directml", "DmlExecutionProvider", "onnxruntime-directml", one_run_at_a_time=True),
    )
}
"""By device. Only cpu and openvino are tested where Cognate is made; the others share their code."""

SLOWER_ON_CPU = ["SkipLayerNormFusion"]
"""Of onnxruntime's optimisations, those that cost time on a CPU: the fused operator adds and normalises
number by number, in a tenth of an int8 model's time, where the two it replaces use vector instructions."""

LEFT_TO_PLUGINS = ["ConstantFolding"]
"""Of onnxruntime's optimisations, those that a plugin does better: the matrices of a bf16 bundle would be
widened before OpenVINO saw them, which takes 25 MB and a tenth of a second more (MiniLM)."""

SPIN_MICROSECONDS = "20"
"""How long the threads of a run on the CPU wait for work awake; to wake one takes about as long."""

AUTO: tuple[Device, ...] = ("cuda", "cpu")
"""What "auto" tries, first to last. The others must be asked for: they build engines for minutes, calculate
with fewer bits, or are no faster than the CPU."""

BF16_PROCESSOR = "avx512_bf16"
"""The target of a bundle for processors that multiply in bfloat16 (AVX512-BF16, AMX), as OpenVINO does.
Without OpenVINO, or such a processor, the same graph is calculated in float32."""


def available_devices() -> list[Device]:
    """The devices that this onnxruntime has, built in or by a plugin, in the order of the table."""
    built = onnxruntime.get_available_providers()
    return [
        device
        for device, provider in PROVIDERS.items()
        if (importlib.util.find_spec(provider.plugin) if provider.plugin else provider.name in built)
    ]


def check_available(device: Device) -> None:
    """Refuse a device that this onnxruntime has not got.

    Raises:
        CognateError: It is unknown, or not there.
    """
    check_device(device)
    available = available_devices()
    if device != "auto" and device not in available:
        where = "" if PROVIDERS[device].plugin else " in an environment of its own"
        raise CognateError(
            f"device {device} was asked for, but this onnxruntime has only {', '.join(available)}; "
            f"install {PROVIDERS[device].package}{where}, or use --device cpu"
        )


def open_session(
    bundle: Bundle,
    device: Device,
    threads: int,
    constants: Mapping[str, onnxruntime.OrtValue],
    mapped: MappedGraph,
    changes: Sequence[Change],
    *,
    bulk: bool = False,
) -> tuple[Provider, onnxruntime.InferenceSession]:
    """Load a bundle's model on a device.

    Args:
        bundle: Opened.
        device: "auto" takes OpenVINO for a bundle of ``BF16_PROCESSOR``, else CUDA, where they can be
            started, else the CPU.
        threads: Cores to use on the CPU.
        constants: Initializers of the graph that are in memory already, by name; the CPU takes them.
        mapped: The graph.
        changes: What puts operators of ours into it on the CPU; their weights are among the constants.
        bulk: Whether each run has one of the threads, or all of them; by OpenVINO always one.

    Returns:
        The provider that was taken, never another than was asked for, and the session.

    Raises:
        CognateError: The device is unknown, not in this onnxruntime, or does not start.
        ArtifactError: The graph cannot be run.
    """
    check_available(device)
    available = available_devices()
    if device != "auto":
        provider = PROVIDERS[device]
        return provider, _open(bundle, provider, threads, constants, mapped, changes, bulk)
    wanted = AUTO
    if bundle.manifest.target == BF16_PROCESSOR:
        wanted = ("openvino", "cpu")
        if "openvino" not in available:
            _log.warning(
                "%s is for OpenVINO, which is not installed, and is calculated in float32, slower; install "
                "%s, or say --device cpu",
                bundle.folder,
                PROVIDERS["openvino"].package,
            )
    first, *others = [PROVIDERS[name] for name in wanted if name in available]
    for other in others:
        try:
            return first, _open(bundle, first, threads, constants, mapped, changes, bulk)
        except _NotStartedError as error:
            _log.warning("%s; --device auto goes on with %s", error, other.device)
            first = other
    return first, _open(bundle, first, threads, constants, mapped, changes, bulk)


class _NotStartedError(CognateError):
    """The provider is in this onnxruntime, but has no device, driver or library to run on."""

    def __init__(self, provider: Provider, why: str = "") -> None:
        super().__init__(
            f"device {provider.device} was asked for, but onnxruntime could not start it"
            f"{f' ({why})' if why else ''}; check its driver and libraries, or use --device cpu"
        )


def _open(
    bundle: Bundle,
    provider: Provider,
    threads: int,
    constants: Mapping[str, onnxruntime.OrtValue],
    mapped: MappedGraph,
    changes: Sequence[Change],
    bulk: bool,
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if bulk else threads
    # Batches differ in shape, so a pattern of one is no use to the next and its memory is never given back.
    options.enable_mem_pattern = False
    # From one operator of a run to the next, and no longer: threads that spin while nothing runs take the
    # cores from the tokenizer, the event loop and runs beside them.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    options.log_severity_level = 3
    if provider.library:
        _check_library(provider)
    providers = None
    disabled = SLOWER_ON_CPU if provider.device == "cpu" else None
    if provider.plugin:
        disabled = LEFT_TO_PLUGINS
        options.add_provider_for_devices(plugin_devices(provider), openvino_options(bundle, threads))
    else:
        names = dict.fromkeys((provider.name, *provider.before, "CPUExecutionProvider"))
        providers = [(name, _options(name, provider, bundle)) for name in names]
    if provider.device == "cpu":
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        if changes:
            options.register_custom_ops_library(str(operators.library()))
    try:
        session = onnxruntime.InferenceSession(
            model_in_memory(bundle, constants, mapped, changes, options)
            if provider.device == "cpu"
            else str(bundle.graph),
            options,
            providers=providers,
            disabled_optimizers=disabled,
            # It would go on with another provider, and say so on standard output.
            enable_fallback=0,
        )
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        if failed := re.search(r"CUDA failure \d+: (.*?) ;", str(error)):
            raise _NotStartedError(provider, failed[1]) from None
        remedy = "export it again" if provider.device == "cpu" else "see whether --device cpu runs it"
        raise ArtifactError(
            f"{bundle.graph} cannot be run by onnxruntime: {why_not_run(error)}; {remedy}"
        ) from None
    if session.get_providers()[0] != provider.name:
        raise _NotStartedError(provider)
    if OUTPUT not in {value.name for value in session.get_outputs()}:
        raise ArtifactError(f"{bundle.graph} has no output named {OUTPUT}; export it again")
    # What it has read of the file, and laid out anew for the processor.
    give_back_free_memory()
    return session


def model_in_memory(
    bundle: Bundle,
    constants: Mapping[str, onnxruntime.OrtValue],
    mapped: MappedGraph,
    changes: Sequence[Change],
    options: onnxruntime.SessionOptions,
) -> str | bytes:
    """What a session on the CPU is to open, so that its large constants are not read and copied.

    Args:
        bundle: Opened.
        constants: As for ``open_session``, as are the next two.
        mapped: See there.
        changes: See there.
        options: The session's, to which is added what it needs.
    """
    if not mapped.outside:
        return str(bundle.graph)
    for name, values in constants.items():
        options.add_initializer(name, values)
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(bundle.graph.parent)
    )
    return rewritten(bundle.graph, mapped, changes)


@functools.cache
def _share_arena() -> None:
    """Have all sessions of the process calculate in the same memory, 10 MB less than in one each (MiniLM)."""
    cpu = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(cpu, None)


def _check_library(provider: Provider) -> None:
    """Load what a provider needs of CUDA, and refuse one that misses some of it.

    pip's packages of CUDA, cuDNN and TensorRT lie where the system's loader does not look, and only say so
    to who loads them by name. onnxruntime itself tells nothing of a library that is missing, but in its log.
    """
    _load_cuda()
    if provider.device == "tensorrt":
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")
    library = ONNXRUNTIME_LIBRARIES / (provider.library or "")
    if library.is_file():
        try:
            # Of which the other has the names of onnxruntime's own functions.
            ctypes.CDLL(str(library.with_name("libonnxruntime_providers_shared.so")), ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(library))
        except OSError as error:
            raise _NotStartedError(provider, str(error)) from None


@functools.cache
def _load_cuda() -> None:
    # It prints what it does not find, which is told better by what then does not load.
    with contextlib.redirect_stdout(None):
        onnxruntime.preload_dlls()


def plugin_devices(provider: Provider) -> list[onnxruntime.OrtEpDevice]:
    """The processor, as a plugin's device; the plugin is loaded once in a process.

    Args:
        provider: With a plugin, which is installed.

    Raises:
        CognateError: It cannot be loaded, or does not take this processor.
    """
    try:
        _load_plugin(provider.plugin or "")
    except Exception as error:  # what the library's loader says, as onnxruntime's exceptions
        raise _NotStartedError(provider, why_not_run(error)) from None
    devices = [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name == provider.name and device.device.type == onnxruntime.OrtHardwareDeviceType.CPU
    ]
    if not devices:
        raise _NotStartedError(provider, f"{provider.plugin} does not take this processor")
    return devices[:1]


@functools.cache
def _load_plugin(module: str) -> None:
    onnxruntime.register_execution_provider_library(
        module, importlib.import_module(module).get_library_path()
    )


def openvino_options(bundle: Bundle, threads: int) -> dict[str, str]:
    """OpenVINO's options: the arithmetic that suits the bundle, and its share of the cores.

    Args:
        bundle: In bfloat16 where it is for such a processor, and in int8 what is not: that loses a thirtieth
            of what int8 does, and long texts take a fifth less (MiniLM).
        threads: Cores to use, each for a run of its own: one text takes longer so, and several less.
    """
    in_bf16 = bundle.manifest.target == BF16_PROCESSOR or bundle.manifest.precision == "int8"
    settings = {
        # Left to itself, OpenVINO calculates in bfloat16 wherever the processor does.
        "INFERENCE_PRECISION_HINT": "bf16" if in_bf16 else "f32",
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": str(threads),
        # Two processes on one machine would pin their threads to the same cores.
        "ENABLE_CPU_PINNING": "NO",
    }
    return {"load_config": json.dumps({"CPU": settings})}


def why_not_run(error: Exception) -> str:
    """Why onnxruntime did not take a graph, in words for whoever has the file."""
    # What it read may be a copy, and whoever says this names the graph.
    text = re.sub(r"Load model from \S+ failed: ?", "", str(error).strip()) or type(error).__name__
    if "opset" in text or "IR version" in text or "with domain_version of" in text:
        return (
            f"its ONNX version is newer than onnxruntime {onnxruntime.__version__} reads; update onnxruntime"
        )
    if missing := re.search(r'External data path does not exist: "?([^"\n]+)', text):
        return f"its weights, {Path(missing[1]).name}, are missing; put that file beside it"
    if "Protobuf parsing failed" in text:
        return "it is truncated or damaged"
    return text.split("\n", 1)[0]


def _options(name: str, provider: Provider, bundle: Bundle) -> dict[str, str]:
    if name == "TensorrtExecutionProvider":
        return tensorrt_options(bundle, provider, _input_names(bundle.graph))
    if name == "CUDAExecutionProvider":
        return dict(_CUDA)
    return dict(provider.options) if name == provider.name else {}


def tensorrt_options(bundle: Bundle, provider: Provider, inputs: list[str]) -> dict[str, str]:
    """TensorRT's options: one engine for all shapes, built once and kept outside the bundle.

    Args:
        bundle: Its fingerprint names the folder of the engine.
        provider: Its largest batch is the largest shape.
        inputs: Names of the graph's inputs.
    """
    length = bundle.manifest.max_length
    shapes = {
        "min": (1, 1),
        "opt": (max(1, provider.max_batch_tokens // length), length),
        "max": (provider.max_batch_texts, length),
    }
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cognate" / "tensorrt"
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache / bundle.manifest.fingerprint),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
    }
    for which, (texts, tokens) in shapes.items():
        options[f"trt_profile_{which}_shapes"] = ",".join(f"{name}:{texts}x{tokens}" for name in inputs)
    return options


def _input_names(graph: Path) -> list[str]:
    """The inputs of a graph, which is opened on the CPU for it, unoptimised."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return [value.name for value in session.get_inputs()]
