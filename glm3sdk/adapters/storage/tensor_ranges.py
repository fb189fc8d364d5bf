"""Which bytes of a file hold a slice of a tensor, and in which requests to fetch them."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np

from glm3sdk.ports.arrays import HostArray, numpy_dtype
from glm3sdk.ports.checkpoint_store import TensorSpec

# A request takes as long as some 10 ms of transfer do: a smaller gap is fetched along.
GAP_BYTES = 256 * 1024
REQUEST_BYTES = 8 * 1024 * 1024
THREADS = 8


@attrs.frozen
class Runs:
    """Stretches of bytes of one length.

    Attributes:
        offsets: where each begins, ascending.
        length: of each.
    """

    offsets: Sequence[int]
    length: int


def runs(shape: tuple[int, ...], ranges: Sequence[tuple[int, int]], itemsize: int) -> Runs:
    """The bytes of a slice, within those of its tensor.

    Args:
        shape: of the tensor, which lies in C order.
        ranges: start and stop in every dimension; none is empty.
        itemsize: bytes a value.
    """
    strides = [itemsize]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    # The last dimension of which not all is taken: from there on bytes follow one another.
    inner = max((d for d, size in enumerate(shape) if ranges[d] != (0, size)), default=0)
    length, outer = itemsize, []
    for dimension, (start, stop) in enumerate(ranges):
        if dimension < inner:
            outer.append(np.arange(start, stop, dtype=np.int64) * strides[dimension])
        else:
            length *= stop - start
    first = ranges[inner][0] * strides[inner] if shape else 0
    offsets = np.array([first], np.int64)
    for steps in reversed(outer):
        offsets = (steps[:, None] + offsets).reshape(-1)
    return Runs(offsets.tolist(), length)


def requests(wanted: Runs, *, gap: int = GAP_BYTES) -> Iterator[tuple[int, int]]:
    """Ranges that cover some runs: neighbours together, none larger than `REQUEST_BYTES`."""
    start = stop = wanted.offsets[0]
    for offset in wanted.offsets:
        if offset - stop > gap:
            yield from _parts(start, stop)
            start = offset
        stop = offset + wanted.length
    yield from _parts(start, stop)


def _parts(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for begin in range(start, stop, REQUEST_BYTES):
        yield begin, min(begin + REQUEST_BYTES, stop)


def fetch_slice(
    spec: TensorSpec,
    ranges: Sequence[tuple[int, int]],
    fetch: Callable[[int, int], bytes],
    *,
    gap: int = GAP_BYTES,
) -> HostArray:
    """Fetch a slice of a tensor, several requests at once.

    Memory: the slice, and `THREADS` requests.

    Args:
        spec: of the tensor.
        ranges: start and stop in every dimension.
        fetch: the bytes `[start, stop)` of the tensor; called from several threads.
        gap: bytes between two runs up to which they are fetched in one request.

    Returns:
        The slice, in the tensor's dtype.
    """
    dtype = numpy_dtype(spec.dtype)
    result = np.empty([stop - start for start, stop in ranges], dtype)
    if not result.size:
        return result
    wanted = runs(spec.shape, ranges, dtype.itemsize)
    target = result.reshape(-1).view(np.uint8).data
    parts = list(requests(wanted, gap=gap))
    if len(parts) == 1:
        _place(fetch(*parts[0]), parts[0][0], wanted, target)
        return result
    failed = threading.Event()

    def bring(part: tuple[int, int]) -> None:
        if failed.is_set():
            return
        try:
            _place(fetch(*part), part[0], wanted, target)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(bring, parts):  # raises what the first failure raised
            pass
    return result


def _place(data: bytes, start: int, wanted: Runs, target: memoryview) -> None:
    """Copy what a request brought to where it belongs."""
    stop, length = start + len(data), wanted.length
    number = bisect.bisect_right(wanted.offsets, start - length)
    while number < len(wanted.offsets) and wanted.offsets[number] < stop:
        offset = wanted.offsets[number]
        begin, end = max(offset, start), min(offset + length, stop)
        place = number * length - offset
        target[place + begin : place + end] = data[begin - start : end - start]
        number += 1
