"""What this machine's memory can do, and what this process takes of it."""

from __future__ import annotations

import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Larger than the caches of a server's processors, and read in a twentieth of a second.
_BYTES = 1 << 28


def memory_bytes_per_s() -> float:
    """Bytes a second that all processors together read from memory, with plain numpy."""
    workers = len(os.sched_getaffinity(0))
    parts = np.array_split(np.ones(_BYTES // 8, np.int64), workers)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(np.bitwise_or.reduce, parts))
        began = time.perf_counter()
        list(pool.map(np.bitwise_or.reduce, parts))
        return _BYTES / (time.perf_counter() - began)


def memory_use() -> tuple[int, int]:
    """Bytes of this process: the most it ever had, and what is not mapped from files now."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        return peak, int(lines["RssAnon"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return peak, 0  # no Linux
