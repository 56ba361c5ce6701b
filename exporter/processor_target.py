"""Which processor an int8 bundle is made for, and what suits it."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cognate.errors import CognateError

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Target = Literal["auto", "avx2", "avx512_vnni", "arm64", "cuda"]

DOT_PRODUCT_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""Of /proc/cpuinfo: instructions that multiply unsigned by signed bytes and add without saturation."""


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
        One of ``WEIGHTS`` in int8, "cuda" in fp16 and bf16, "any" in fp32.

    Raises:
        CognateError: There is no such precision or target, or the two do not go together.
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
    if precision in ("fp16", "bf16"):
        if target not in ("auto", "cuda"):
            raise CognateError(
                f"{precision} is for GPUs, no processor is faster with it; leave --target out, or use "
                "--precision int8"
            )
        return "cuda"
    if target == "cuda":
        raise CognateError(
            "int8 is for processors, onnxruntime has no such layers on CUDA; use --precision fp16"
        )
    return this_processor(platform.machine(), cpuinfo) if target == "auto" else target


def this_processor(machine: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Which of ``WEIGHTS`` suits a processor.

    Args:
        machine: ``platform.machine()``.
        cpuinfo: Where Linux says what it can do; elsewhere an Intel processor is taken to have AVX2 alone.
    """
    if machine.lower() in ("arm64", "aarch64"):
        return "arm64"
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return "avx512_vnni" if DOT_PRODUCT_FLAGS.intersection(flags) else "avx2"
