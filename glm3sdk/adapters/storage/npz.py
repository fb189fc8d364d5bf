"""Numpy's .npz, written block by block."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from typing import BinaryIO

import numpy as np

from glm3sdk.ports.arrays import IntArray


def write_npz(
    file: BinaryIO, arrays: Mapping[str, Iterable[IntArray]], *, shape: tuple[int, int]
) -> None:
    """Write int32 arrays of one shape, of which only a block at a time is in memory.

    Args:
        file: where to.
        arrays: the blocks of each array, in order, each `[rows, columns]`.
        shape: rows and columns of each whole array.
    """
    header = {"descr": "<i4", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(file, "w") as archive:
        for name, blocks in arrays.items():
            # The size is not known beforehand, and an array may be larger than 2 GiB.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]  # numpy's
                    member, header
                )
                for block in blocks:
                    member.write(np.ascontiguousarray(block, dtype="<i4").data)
