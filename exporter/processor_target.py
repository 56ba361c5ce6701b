"""Which processor a bundle is made for, and what suits it."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cognate.errors import CognateError
from cognate.processors import processor_flags
from cognate.providers import BF16_PROCESSOR, available_devices

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Target = Literal["auto", "avx2", "avx512_vnni", "avx512_bf16", "arm64", "cuda"]

DOT_PRODUCT_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""Of /proc/cpuinfo: instructions that multiply unsigned by signed bytes and add without saturation."""

BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Instructions that multiply in bfloat16 and add in float32."""


@dataclass(frozen=True)
class Weights:
    """The int8 weights that a processor multiplies fast, and without saturation.

    Attributes:
        type: "int8" or "uint8". The inputs of a layer are uint8 everywhere.
        reduce_range: Whether weights have seven bits, where sums of two products would saturate else.
    """

    type: Literal["int8", "uint8"]
    reduce_range: bool = False


WEIGHTS = {
    # AVX2 multiplies uint8 by int8 into 16 bits that saturate; onnxruntime widens uint8 by uint8 first.
    "avx2": Weights("uint8"),
    "avx512_vnni": Weights("int8"),
    "arm64": Weights("int8"),
}
"""By target, with a scale for each output channel on all of them."""


def choose_target(precision: Precision, target: Target, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Find what a bundle is made for.

    Args:
        precision: Of the bundle.
        target: What was asked for; "auto" is this machine's processor in int8.
        cpuinfo: Where Linux says what the processor can do.

    Returns:
        One of ``WEIGHTS`` in int8, "cuda" in fp16, "cuda" or "avx512_bf16" in bf16, "any" in fp32.

    Raises:
        CognateError: There is no such precision or target, the two do not go together, or a bf16 bundle
            cannot be measured here.
    """
    for what, value, known in (
        ("precision", precision, get_args(Precision)),
        ("target", target, get_args(Target)),
    ):
        if value not in known:
            raise CognateError(f"there is no {what} {value!r}; choose one of {', '.join(known)}")
    if precision == "fp32":
        if target != "auto":
            raise CognateError("an fp32 bundle is the same for every processor; leave --target out")
        return "any"
    if precision == "fp16":
        if target not in ("auto", "cuda"):
            raise CognateError(
                "fp16 is for GPUs, no processor is faster with it; leave --target out, or use "
                "--precision int8, or bf16 where the processor has it"
            )
        return "cuda"
    if precision == "bf16":
        return _bf16_target(target, cpuinfo)
    if target not in ("auto", *WEIGHTS):
        raise CognateError(
            f"int8 is for {', '.join(WEIGHTS)}, not {target}; use --precision fp16 for cuda, bf16 for "
            f"{BF16_PROCESSOR}"
        )
    return this_processor(platform.machine(), cpuinfo) if target == "auto" else target


def _bf16_target(target: Target, cpuinfo: Path) -> str:
    """What runs a bf16 bundle must be here: its vectors are compared with torch's as it is exported."""
    if target not in ("auto", "cuda", BF16_PROCESSOR):
        raise CognateError(f"bf16 is for cuda and {BF16_PROCESSOR}, not {target}; use --precision int8")
    available = available_devices()
    if target != BF16_PROCESSOR and "cuda" in available:
        return "cuda"
    if target == "cuda":
        raise CognateError(
            "bf16 for a GPU is measured on one, and onnxruntime has none here; export it on one, or use fp16"
        )
    if not BF16_FLAGS.intersection(processor_flags(cpuinfo)):
        raise CognateError(
            "bf16 wants a GPU, or a processor with AVX512-BF16 or AMX, and this has neither; export it on "
            "one, or use --precision int8"
        )
    if "openvino" not in available:
        raise CognateError(
            "bf16 on a processor is run by OpenVINO, which is not installed; install cognate[openvino]"
        )
    return BF16_PROCESSOR


def this_processor(machine: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Which of ``WEIGHTS`` suits a processor.

    Args:
        machine: ``platform.machine()``.
        cpuinfo: Where Linux says what it can do; elsewhere an Intel processor is taken to have AVX2 alone.
    """
    if machine.lower() in ("arm64", "aarch64"):
        return "arm64"
    return "avx512_vnni" if DOT_PRODUCT_FLAGS.intersection(processor_flags(cpuinfo)) else "avx2"
