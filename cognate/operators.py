"""The library of our operators for onnxruntime, and the arithmetic that this processor has for them.

It is built where Cognate is installed with a C compiler on Linux, x86-64; ``operators.c`` says what is
in it.
"""

import ctypes
import functools
import importlib.util
import platform
import sys
from pathlib import Path
from typing import Literal

from cognate.processors import processor_flags

Arithmetic = Literal["amx", "avx512"]
"""What float32 is multiplied by: three products of bfloat16 (``amx.h``), or as it is (``avx512.h``)."""

_AVX512 = {"avx512bw", "avx512dq", "avx512f", "avx512vl", "fma"}
_AMX = {"amx_bf16", "amx_tile", "avx512_bf16"} | _AVX512
"""Of /proc/cpuinfo: instructions that the operators use."""


@functools.cache
def library() -> Path | None:
    """The operators' library; None where it was not built."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    built = importlib.util.find_spec("cognate._operators")
    return Path(built.origin) if built and built.origin else None


@functools.cache
def arithmetic() -> Arithmetic | None:
    """The quickest arithmetic that this processor has; None where it has neither, or there is no library."""
    built, flags = library(), processor_flags()
    if built is None or not _AVX512.issubset(flags):
        return None
    try:
        operators = ctypes.CDLL(str(built))
        # A system, or what it runs in, may have AMX and not let programs use it.
        return "amx" if _AMX.issubset(flags) and operators.amx_allowed() else "avx512"
    except (OSError, AttributeError):
        return None
