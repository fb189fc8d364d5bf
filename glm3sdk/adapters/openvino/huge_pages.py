"""Large pages for memory that every token reads from end to end.

With pages of 4 kB the processor looks up a million addresses for each token of a ChatGLM3-6B,
which costs int8 a third of the memory's bandwidth. Linux joins pages into 2 MB ones for who
asks (MADV_COLLAPSE, since 6.1: https://man7.org/linux/man-pages/man2/madvise.2.html), and copies
them for it; where it does not, or has none to give, memory stays as it is.
"""

from __future__ import annotations

import ctypes
from threading import Thread

Region = tuple[int, int]
"""Addresses: the first one, and the one behind the last."""

_PAGE = 1 << 21
_PIECE = 8 * _PAGE  # what is asked for at once
_COLLAPSE = 25


class HugePages:
    """Memory that is taken from now on, to be laid into large pages.

    Addresses that were given back in the meantime do no harm: content stays, wherever it lies.
    """

    def __init__(self) -> None:
        self._before = _regions()

    def lay_out(self) -> Thread:
        """Do so on a thread, which nobody needs to wait for: it takes seconds."""
        pieces = [
            (start, min(_PIECE, stop - start))
            for region in without(_regions(), self._before)
            for first, stop in [_whole_pages(region)]
            for start in range(first, stop, _PIECE)
        ]
        thread = Thread(target=_collapse, args=(pieces,), name="glm3sdk-huge-pages", daemon=True)
        thread.start()
        return thread


def _collapse(pieces: list[tuple[int, int]]) -> None:
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return  # no Linux
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for address, size in pieces:
        # What it answers is of no use: a piece of which one page could not be had counts as failed.
        madvise(address, size, _COLLAPSE)


def anonymous_regions(maps: str) -> list[Region]:
    """The writable regions of memory that belong to no file, from the text of /proc/self/maps."""
    found = []
    for line in maps.splitlines():
        addresses, access, _, _, inode, *name = line.split(maxsplit=5)
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, _, stop = addresses.partition("-")
            found.append((int(start, 16), int(stop, 16)))
    return found


def without(regions: list[Region], others: list[Region]) -> list[Region]:
    """What of some regions lies in none of the others."""
    for start, stop in others:
        regions = [
            part
            for region in regions
            for part in ((region[0], min(region[1], start)), (max(region[0], stop), region[1]))
            if part[0] < part[1]
        ]
    return regions


def _whole_pages(region: Region) -> Region:
    return -(-region[0] // _PAGE) * _PAGE, region[1] // _PAGE * _PAGE


def _regions() -> list[Region]:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            return anonymous_regions(file.read())
    except OSError:
        return []  # no Linux
