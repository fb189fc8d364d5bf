"""The contract of checkpoint stores: tests that every adapter and every fake passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np
import pytest

from glm3sdk.errors import CheckpointWriteError, InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray, numpy_dtype
from glm3sdk.ports.checkpoint_store import CheckpointStore, CheckpointWriter, TensorSpec

_VALUES: Mapping[str, HostArray] = {
    "weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "half": np.linspace(-1, 1, 10, dtype=np.float16).reshape(5, 2),
    "brain": np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16),
    "double": np.arange(3, dtype=np.float64),
    "step": np.array(2**40, np.int64),
    "random_state": np.arange(7, dtype=np.uint8),
    "flags": np.array([True, False]),
    "nothing": np.empty((0, 4), np.float32),
}
_CONFIG = b'{"num_layers": 2}'


class CheckpointStoreContract:
    """Derive a test class from it and give it the fixtures `store` and `root`."""

    @pytest.fixture
    def store(self) -> CheckpointStore:
        """The store."""
        raise NotImplementedError("override the `store` fixture")

    @pytest.fixture
    def root(self) -> str:
        """A URI below which there is no checkpoint yet; it does not end in a slash."""
        raise NotImplementedError("override the `root` fixture")

    def test_what_was_committed_comes_back_bit_for_bit(
        self, store: CheckpointStore, root: str
    ) -> None:
        _save(store, f"{root}/a")
        opened = store.open(f"{root}/a")
        listed = {name: (spec.shape, spec.dtype) for name, spec in opened.tensors.items()}
        assert listed == {name: (a.shape, a.dtype.name) for name, a in _VALUES.items()}
        for name, array in _VALUES.items():
            read = opened.read(name)
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert read.tobytes() == array.tobytes()
        np.testing.assert_array_equal(
            opened.read("weight", (slice(1, 3), slice(2))), _VALUES["weight"][1:3, :2]
        )
        assert sorted(opened.files) == ["config.json", "model.safetensors"]
        assert opened.read_file("config.json") == _CONFIG
        opened.verify()

    def test_nothing_is_seen_before_commit(self, store: CheckpointStore, root: str) -> None:
        writer = store.create(f"{root}/a")
        _fill(writer)
        _assert_absent(store, root)
        writer.commit()
        assert store.list(root) == (f"{root}/a",)

    def test_a_checkpoint_may_lie_below_another(self, store: CheckpointStore, root: str) -> None:
        # So lie the parts of several ranks.
        for name in ("a", "a/rank_0", "a/rank_1"):
            _save(store, f"{root}/{name}")
        assert store.list(root) == (f"{root}/a",)
        assert store.list(f"{root}/a") == (f"{root}/a/rank_0", f"{root}/a/rank_1")
        store.delete(f"{root}/a/rank_0")
        assert store.list(f"{root}/a") == (f"{root}/a/rank_1",)
        for name in ("a", "a/rank_1"):
            store.open(f"{root}/{name}").verify()
        store.delete(f"{root}/a/rank_1")
        store.delete(f"{root}/a")
        assert store.list(root) == ()

    def test_an_aborted_checkpoint_is_never_seen(self, store: CheckpointStore, root: str) -> None:
        writer = store.create(f"{root}/a")
        _fill(writer)
        writer.abort()
        writer.abort()
        _assert_absent(store, root)

    def test_an_abort_after_commit_does_nothing(self, store: CheckpointStore, root: str) -> None:
        writer = store.create(f"{root}/a")
        _fill(writer)
        writer.commit()
        writer.abort()
        store.open(f"{root}/a").verify()

    def test_a_writer_that_has_ended_is_refused(self, store: CheckpointStore, root: str) -> None:
        committed, aborted = store.create(f"{root}/a"), store.create(f"{root}/b")
        committed.commit()
        aborted.abort()
        for writer in (committed, aborted):
            with pytest.raises(CheckpointWriteError, match="has ended"):
                writer.add_file("late.json", b"{}")
            with pytest.raises(CheckpointWriteError, match="has ended"):
                writer.commit()
        assert store.open(f"{root}/a").files == ()

    def test_a_commit_replaces_the_whole_checkpoint(
        self, store: CheckpointStore, root: str
    ) -> None:
        _save(store, f"{root}/a")
        writer = store.create(f"{root}/a")
        writer.add_file("only.json", b"[]")
        assert store.open(f"{root}/a").read_file("config.json") == _CONFIG
        writer.commit()
        assert store.open(f"{root}/a").files == ("only.json",)
        assert not store.open(f"{root}/a").tensors
        assert store.list(root) == (f"{root}/a",)

    def test_of_two_writers_the_last_to_commit_wins(
        self, store: CheckpointStore, root: str
    ) -> None:
        first, second = store.create(f"{root}/a"), store.create(f"{root}/a")
        first.add_file("x.json", b"first")
        second.add_file("x.json", b"second")
        second.commit()
        first.commit()
        assert store.open(f"{root}/a").read_file("x.json") == b"first"

    def test_a_list_is_sorted_and_of_direct_children(
        self, store: CheckpointStore, root: str
    ) -> None:
        assert store.list(root) == ()
        for name in ("b", "a", "deep/c", "a-1", "名 字"):
            store.create(f"{root}/{name}").commit()
        listed = store.list(root)
        assert len(listed) == 4
        assert listed[:3] == (f"{root}/a", f"{root}/a-1", f"{root}/b")
        for uri in listed:
            store.open(uri).verify()
        assert store.list(f"{root}/deep") == (f"{root}/deep/c",)
        assert store.list(f"{root}/") == listed

    def test_a_deleted_checkpoint_is_gone(self, store: CheckpointStore, root: str) -> None:
        _save(store, f"{root}/a")
        _save(store, f"{root}/b")
        store.delete(f"{root}/a")
        assert store.list(root) == (f"{root}/b",)
        with pytest.raises(InvalidCheckpointError, match="no checkpoint at"):
            store.open(f"{root}/a")
        with pytest.raises(InvalidCheckpointError, match="no checkpoint at"):
            store.delete(f"{root}/a")
        _save(store, f"{root}/a")
        store.open(f"{root}/a").verify()

    def test_floats_are_converted_to_the_dtype_of_their_spec(
        self, store: CheckpointStore, root: str
    ) -> None:
        values = np.linspace(-3, 3, 1000, dtype=np.float32)
        dtypes = ("float16", "bfloat16", "float32", "float64")
        writer = store.create(f"{root}/a")
        specs = {dtype: TensorSpec((1000,), dtype) for dtype in dtypes}
        writer.add_tensors("m.safetensors", specs, [(dtype, values) for dtype in dtypes])
        writer.commit()
        opened = store.open(f"{root}/a")
        for dtype in dtypes:
            assert opened.read(dtype).tobytes() == values.astype(numpy_dtype(dtype)).tobytes()

    def test_values_in_any_order_and_layout_are_taken(
        self, store: CheckpointStore, root: str
    ) -> None:
        matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
        values = {"a": matrix.T, "b": matrix[:, ::2], "c": matrix.astype(">f4"), "d": matrix[1]}
        specs = {name: TensorSpec(array.shape, "float32") for name, array in values.items()}
        for order in (list(values), sorted(values, reverse=True)):
            writer = store.create(f"{root}/a")
            writer.add_tensors("m.safetensors", specs, ((name, values[name]) for name in order))
            writer.commit()
            opened = store.open(f"{root}/a")
            for name, array in values.items():
                np.testing.assert_array_equal(opened.read(name), array)

    def test_a_tensor_may_be_changed_after_it_was_given(
        self, store: CheckpointStore, root: str
    ) -> None:
        shared = np.zeros(3, np.float32)

        def values() -> Iterator[tuple[str, HostArray]]:
            for number, name in enumerate(("a", "b")):
                shared[...] = number
                yield name, shared

        writer = store.create(f"{root}/a")
        specs = {name: TensorSpec((3,), "float32") for name in ("a", "b")}
        writer.add_tensors("m.safetensors", specs, values())
        writer.commit()
        opened = store.open(f"{root}/a")
        assert [opened.read(name)[0] for name in ("a", "b")] == [0, 1]

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ([], "no value was given for tensor t"),
            ([("t", np.zeros(2, np.float32))] * 2, "tensor t is given twice"),
            ([("u", np.zeros(2, np.float32))], "tensor u is not in the specs"),
            ([("t", np.zeros(3, np.float32))], r"tensor t has shape \[3\].*\[2\]"),
            ([("t", np.zeros((2, 1), np.float32))], r"tensor t has shape \[2, 1\]"),
            ([("t", np.zeros(2, np.int32))], "tensor t is int32"),
            ([("t", np.zeros(2, np.complex64))], "tensor t is complex64"),
            ([("t", np.array([1, 1e30]))], "tensor t has values that float16 cannot hold"),
        ],
    )
    def test_values_that_do_not_fit_their_specs_end_the_writer(
        self,
        store: CheckpointStore,
        root: str,
        values: list[tuple[str, HostArray]],
        words: str,
    ) -> None:
        _refuse(
            store,
            root,
            words,
            lambda writer: writer.add_tensors(
                "m.safetensors", {"t": TensorSpec((2,), "float16")}, values
            ),
        )

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            (TensorSpec((2,), "complex64"), "tensor t is complex64"),
            (TensorSpec((2,), "float8"), "tensor t is float8"),
            (TensorSpec((-1,), "float32"), r"tensor t has shape \(-1,\)"),
        ],
    )
    def test_specs_that_cannot_be_stored_end_the_writer(
        self, store: CheckpointStore, root: str, spec: TensorSpec, words: str
    ) -> None:
        _refuse(
            store,
            root,
            words,
            lambda writer: writer.add_tensors("m.safetensors", {"t": spec}, []),
        )

    def test_a_tensor_in_two_files_is_refused(self, store: CheckpointStore, root: str) -> None:
        def write(writer: CheckpointWriter) -> None:
            for file in ("a.safetensors", "b.safetensors"):
                specs = {"t": TensorSpec((2,), "float32")}
                writer.add_tensors(file, specs, [("t", np.zeros(2, np.float32))])

        _refuse(store, root, r"tensor t is both in a\.safetensors and in b\.safetensors", write)

    @pytest.mark.parametrize(
        "name", ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "../up", "a\\b", "a\0b"]
    )
    def test_a_name_that_is_not_a_plain_one_is_refused(
        self, store: CheckpointStore, root: str, name: str
    ) -> None:
        words = "is not a plain file name"
        _refuse(store, root, words, lambda writer: writer.add_file(name, b""))
        _refuse(store, root, words, lambda writer: writer.add_tensors(name, {}, []))

    def test_a_name_is_given_once_and_says_what_the_file_is(
        self, store: CheckpointStore, root: str
    ) -> None:
        def twice(writer: CheckpointWriter) -> None:
            writer.add_file("x.json", b"1")
            writer.add_file("x.json", b"2")

        _refuse(store, root, "'x.json' is taken", twice)
        _refuse(store, root, "ends in .safetensors", lambda w: w.add_file("x.safetensors", b""))
        _refuse(store, root, "ends in .safetensors", lambda w: w.add_tensors("x.bin", {}, []))

    def test_an_error_of_the_values_passes_through_and_ends_the_writer(
        self, store: CheckpointStore, root: str
    ) -> None:
        def values() -> Iterator[tuple[str, HostArray]]:
            yield "a", np.zeros(2, np.float32)
            raise OSError("the source went away")

        specs = {name: TensorSpec((2,), "float32") for name in ("a", "b")}
        writer = store.create(f"{root}/a")
        with pytest.raises(OSError, match="the source went away"):
            writer.add_tensors("m.safetensors", specs, values())
        with pytest.raises(CheckpointWriteError, match="has ended"):
            writer.commit()
        _assert_absent(store, root)

    def test_an_unknown_file_is_named(self, store: CheckpointStore, root: str) -> None:
        _save(store, f"{root}/a")
        for name in ("no_such.json", "../a/config.json"):
            with pytest.raises(InvalidCheckpointError, match=name):
                store.open(f"{root}/a").read_file(name)


def _fill(writer: CheckpointWriter) -> None:
    specs = {name: TensorSpec(array.shape, array.dtype.name) for name, array in _VALUES.items()}
    writer.add_tensors("model.safetensors", specs, _VALUES.items())
    writer.add_file("config.json", _CONFIG)


def _save(store: CheckpointStore, uri: str) -> None:
    writer = store.create(uri)
    _fill(writer)
    writer.commit()


def _assert_absent(store: CheckpointStore, root: str) -> None:
    assert store.list(root) == ()
    with pytest.raises(InvalidCheckpointError, match="no checkpoint at"):
        store.open(f"{root}/a")


def _refuse(
    store: CheckpointStore, root: str, words: str, use: Callable[[CheckpointWriter], None]
) -> None:
    writer = store.create(f"{root}/a")
    with pytest.raises(InvalidCheckpointError, match=words):
        use(writer)
    with pytest.raises(CheckpointWriteError, match="has ended"):
        writer.commit()
    _assert_absent(store, root)
