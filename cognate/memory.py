"""How much memory this process may use, and giving back what it does not."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_memory(cgroup: Path = CGROUP) -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit, _ in control_group_memory(cgroup))])


def control_group_memory(cgroup: Path = CGROUP) -> Iterator[tuple[int, int]]:
    """The bytes that a control group may use, and uses; of version 2, version 1, both or none."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            yield int((cgroup / limit).read_text()), int((cgroup / used).read_text())
        except (OSError, ValueError):  # "max" is no number: there is no limit.
            continue


def give_back_free_memory() -> None:
    """Let the system have what was freed, of which glibc keeps pieces however large they are together."""
    if sys.platform == "linux":
        # musl has no such function, and keeps nothing.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
