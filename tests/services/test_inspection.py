from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest

from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import TensorSpec
from glm3sdk.services import inspection
from glm3sdk.services.inspection import DtypeShare, Inspection, first_not_finite


class Held:
    """Tensors in memory that say what was read of them."""

    def __init__(self, arrays: Mapping[str, HostArray]) -> None:
        self._arrays = arrays
        self.largest = 0

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {name: TensorSpec(a.shape, a.dtype.name) for name, a in self._arrays.items()}

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        found: HostArray = self._arrays[name][index]
        self.largest = max(self.largest, found.nbytes)
        return found


def test_dtypes_are_summed_and_the_one_of_most_bytes_comes_first():
    tensors = {
        "a": TensorSpec((10,), "float32"),
        "b": TensorSpec((2, 3), "float16"),
        "c": TensorSpec((100,), "bfloat16"),
        "d": TensorSpec((), "float32"),
        "note": TensorSpec((), "str"),
    }
    found = Inspection(path="p", format="mindspore", files={"p": 1}, tensors=tensors)
    assert list(found.dtypes.items()) == [
        ("bfloat16", DtypeShare(1, 200)),
        ("float32", DtypeShare(2, 44)),
        ("float16", DtypeShare(1, 12)),
        ("str", DtypeShare(1, 0)),
    ]
    assert found.elements == 10 + 6 + 100 + 1 + 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(
    dtype: type, bad: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inspection, "_BLOCK_BYTES", 64)
    whole = np.zeros((50, 3), np.float32)
    broken = whole.copy()
    broken[49, 2] = bad
    reader = Held({"n": np.array(1), "a": whole.astype(dtype), "b": broken.astype(dtype)})
    seen: list[int] = []
    assert first_not_finite(reader, seen.append) == "b"
    assert sum(seen) == 2 * whole.astype(dtype).nbytes
    assert reader.largest <= 64


def test_finite_tensors_numbers_and_empty_ones_are_passed():
    arrays = {"a": np.ones((3, 2)), "scalar": np.array(2.0), "empty": np.empty((0, 3))}
    assert first_not_finite(Held(arrays), lambda count: None) is None
    assert first_not_finite(Held({"scalar": np.array(np.nan)}), lambda count: None) == "scalar"
