"""What the processor can do, how many of its cores this process may use, and which threads come first."""

import math
import os
import sys
import threading
from pathlib import Path

YIELDING = 5
"""Steps of niceness by which a thread gives way: about a third of the weight of one that does not."""


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The instructions that the processor has, by Linux's names.

    Args:
        cpuinfo: Where Linux says so; where there is no such file, none are known.
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the cores this process may use: its affinity, and its cgroup's CPU quota, rounded up.

    A container on a 64-core host with a quota of 2 gets 2: more threads would only wait for each other.

    Args:
        cgroup: Where the control group's files are (version 2, or version 1's cpu controller below it).

    Returns:
        At least 1.
    """
    # Not os.sched_getaffinity alone: macOS has none.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(cores, math.ceil(quota)) if quota else cores)


def give_way() -> None:
    """Let this thread, and those that it starts from now on, give way to the others where cores are short.

    On Linux, where niceness is a thread's own; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(19, niceness + YIELDING))


def _quota(cgroup: Path) -> float | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        # "max", or nothing that a kernel writes.
        return None
    return cores if cores > 0 else None
