"""The contract of checkpoint readers: tests that every adapter and every fake passes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader


class CheckpointReaderContract:
    """Derive a test class from it and give it the fixtures `reader` and `expected`."""

    @pytest.fixture
    def expected(self) -> Mapping[str, HostArray]:
        """What the checkpoint holds: tensors of 1 and of 2 dimensions, none empty."""
        raise NotImplementedError("override the `expected` fixture")

    @pytest.fixture
    def reader(self) -> CheckpointReader:
        """The open checkpoint that holds `expected`."""
        raise NotImplementedError("override the `reader` fixture")

    def test_every_tensor_is_listed_with_its_shape_and_dtype(
        self, reader: CheckpointReader, expected: Mapping[str, HostArray]
    ) -> None:
        listed = {name: (spec.shape, spec.dtype) for name, spec in reader.tensors.items()}
        assert listed == {name: (a.shape, a.dtype.name) for name, a in expected.items()}

    def test_a_whole_tensor_is_read_bit_for_bit_in_its_dtype(
        self, reader: CheckpointReader, expected: Mapping[str, HostArray]
    ) -> None:
        for name, array in expected.items():
            read = reader.read(name)
            assert read.dtype == array.dtype
            assert read.shape == array.shape
            assert read.tobytes() == array.tobytes()

    @pytest.mark.parametrize(
        "index",
        [
            (slice(1, 3),),
            (slice(None), slice(0, 2)),
            (slice(1, None), slice(1, 3)),
            (slice(-2, None),),
            (slice(0, 10_000_000),),
            (slice(1, 1),),
            (slice(2, 1),),
        ],
    )
    def test_a_slice_is_what_numpy_would_give(
        self,
        reader: CheckpointReader,
        expected: Mapping[str, HostArray],
        index: tuple[slice, ...],
    ) -> None:
        fitting = {name: array for name, array in expected.items() if array.ndim >= len(index)}
        assert fitting
        for name, array in fitting.items():
            read = reader.read(name, index)
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, array[index])

    def test_an_index_that_does_not_fit_is_refused(
        self, reader: CheckpointReader, expected: Mapping[str, HostArray]
    ) -> None:
        name, array = next(iter(expected.items()))
        with pytest.raises(InvalidCheckpointError, match="cannot be read by"):
            reader.read(name, (slice(None),) * (array.ndim + 1))
        with pytest.raises(InvalidCheckpointError, match="steps of 1"):
            reader.read(name, (slice(0, 2, 2),))

    def test_an_unknown_tensor_is_named(self, reader: CheckpointReader) -> None:
        with pytest.raises(InvalidCheckpointError, match="no_such_tensor"):
            reader.read("no_such_tensor")

    def test_what_was_read_may_be_changed_without_changing_the_checkpoint(
        self, reader: CheckpointReader, expected: Mapping[str, HostArray]
    ) -> None:
        name, array = next(iter(expected.items()))
        reader.read(name)[...] = 0
        assert reader.read(name).tobytes() == array.tobytes()
