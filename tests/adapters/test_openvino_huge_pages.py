from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from glm3sdk.adapters.openvino.huge_pages import HugePages, anonymous_regions, without

MAPS = """\
00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/python3.11
00e03000-00e24000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
7f0000200000-7f0000400000 r--p 00000000 00:00 0
7f0000400000-7f0000600000 rw-s 00000000 00:00 0
7f0000600000-7f0000800000 rw-p 00001000 08:02 44 /models/with a space/model.safetensors
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
"""
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_regions_are_the_writable_ones_that_belong_to_no_file():
    assert anonymous_regions(MAPS) == [
        (0x00E03000, 0x00E24000),
        (0x7F0000000000, 0x7F0000200000),
    ]
    assert anonymous_regions("") == []


@pytest.mark.parametrize(
    ("others", "left"),
    [
        ([], [(10, 20)]),
        ([(0, 5), (20, 30)], [(10, 20)]),
        ([(10, 20)], []),
        ([(5, 25)], []),
        ([(12, 15)], [(10, 12), (15, 20)]),
        ([(5, 12), (18, 25)], [(12, 18)]),
    ],
)
def test_what_was_there_before_is_left_out(
    others: list[tuple[int, int]], left: list[tuple[int, int]]
):
    assert without([(10, 20)], others) == left


def anonymous_huge(address: int) -> int:
    """KiB in large pages of the region that holds an address."""
    within = False
    for line in Path("/proc/self/smaps").read_text("utf-8", "replace").splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            within = int(found[1], 16) <= address < int(found[2], 16)
        elif within and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    raise AssertionError(f"no region at {address:x}")


@pytest.mark.skipif(not HUGE.exists() or "[never]" in HUGE.read_text(), reason="no large pages")
def test_memory_that_was_taken_since_lies_in_large_pages_with_its_content():
    pages = HugePages()
    taken = mmap.mmap(-1, 16 << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(taken, np.uint64)
    values[:] = np.arange(len(values))
    pages.lay_out().join()
    middle = int(values.ctypes.data) + len(taken) // 2
    # Not all of it, where the machine's memory is in pieces.
    assert anonymous_huge(middle) >= 2048
    np.testing.assert_array_equal(values, np.arange(len(values)))


def test_a_system_without_large_pages_keeps_what_it_has(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    pages = HugePages()
    values = np.arange(1 << 22)
    pages.lay_out().join()
    assert values[-1] == (1 << 22) - 1
