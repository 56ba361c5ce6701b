"""The memory that training may take, how much it took, and what to do where it is not enough."""

import contextlib
import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from cognate.memory import CGROUP, control_group_memory, give_back_free_memory
from trainer.options import TrainingOptions

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""glibc's numbers of what mallopt sets (malloc.h), whose defaults are 128 KiB and 65,536."""


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Let the allocator keep what is freed, where it is glibc's; at the end, it is given back.

    Else it gives every large tensor back to the kernel, and the next one costs a page fault for each 4 KiB of
    it: a fifth of the time of a step on a CPU, for the gradients of the embedding table alone are 47 MB.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        yield
        return
    set_option(_MMAP_MAX, 0)
    set_option(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        set_option(_MMAP_MAX, 65536)
        set_option(_TRIM_THRESHOLD, 128 * 1024)
        give_back_free_memory()


def free_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that this process may still take: of the machine, and of its control group."""
    left = (max(0, limit - used) for limit, used in control_group_memory(cgroup))
    return min([int(psutil.virtual_memory().available), *left])


def reset_peak() -> None:
    """Forget the most bytes that were held so far, where Linux lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> int:
    """The most bytes this process held at a time, since the peak was reset where that can be done."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not get memory, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def out_of_memory(settings: TrainingOptions, device: torch.device) -> str:
    """Say that the memory is not enough, with the advice that applies."""
    where = "the GPU" if device.type == "cuda" else "the machine"
    smaller = [] if settings.batch_size == "auto" else [f"a batch_size below {settings.batch_size} (or auto)"]
    unused = {
        "gradient_checkpointing=true": not settings.gradient_checkpointing,
        "precision=bf16": settings.precision == "fp32",
        "max_length=64, or what your texts need": settings.max_length is None,
        "lora=8": not settings.lora and settings.freeze == "none",
    }
    return (
        f"{where} is out of memory; try {', '.join(smaller + [o for o, free in unused.items() if free])}"
        + (", or a smaller model")
    )
