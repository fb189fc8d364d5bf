from __future__ import annotations

import io
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # gives numpy the dtype name "bfloat16"
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.torch_files import number, pickled, tensor, text, write_archive, write_torch

from glm3sdk.adapters.storage.torch_bin import TorchBinFile
from glm3sdk.adapters.storage.torch_pickle import MAX_PICKLE_BYTES
from glm3sdk.errors import Glm3Error, InvalidCheckpointError, UnsafeCheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"
ONE = np.ones(1, np.float32).tobytes()


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "torch_bin.npz") as values:
        return dict(values)


def golden(name: str) -> TorchBinFile:
    return TorchBinFile(GOLDEN / f"torch_{name}.bin")


def refuse(
    path: Path, *words: str, error: type[Glm3Error] = InvalidCheckpointError, name: str = ""
) -> None:
    """Opening, or reading the tensor of that name, says in one line what is wrong."""

    def use() -> None:
        reader = TorchBinFile(path)
        if name:
            reader.read(name)

    with pytest.raises(error) as raised:
        use()
    message = str(raised.value)
    assert type(raised.value) is error
    assert "\n" not in message
    assert len(message) < 1000
    for word in (str(path), *words):
        assert word in message


@pytest.mark.parametrize(
    "name", ["floats", "others", "views", "parameters", "state_dict", "ordered"]
)
def test_what_torch_saved_is_read_bit_for_bit(name: str, expected: dict[str, np.ndarray]) -> None:
    reader = golden(name)
    start = f"{name}/"
    wanted = {k.removeprefix(start): v for k, v in expected.items() if k.startswith(start)}
    assert list(reader.tensors) == list(wanted)
    for key, values in wanted.items():
        read, spec = reader.read(key), reader.tensors[key]
        dtype = "bfloat16" if key == "bfloat16" else values.dtype.name  # its bits, in numpy's file
        assert (spec.shape, spec.dtype) == (values.shape, dtype)
        assert (read.shape, read.dtype.name) == (values.shape, dtype)
        assert read.tobytes() == values.tobytes()
        assert read.flags.c_contiguous
        assert read.flags.writeable


@pytest.mark.parametrize(
    "index", [(slice(1, 3),), (slice(None), slice(1, 2)), (slice(2, None), slice(1, 3))]
)
def test_slices_of_views_are_what_torch_would_give(
    index: tuple[slice, ...], expected: dict[str, np.ndarray]
) -> None:
    reader = golden("views")
    for name in reader.tensors:
        np.testing.assert_array_equal(reader.read(name, index), expected[f"views/{name}"][index])


@pytest.mark.parametrize("name", ["protocol4", "unchecked"])
def test_the_less_usual_ways_of_torch_are_read_too(name: str) -> None:
    np.testing.assert_array_equal(golden(name).read("a"), np.ones((2, 2), np.float32))


def test_the_tests_own_files_are_built_as_torch_builds_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(GOLDEN / "torch_ordered.bin") as archive:
        theirs = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    weights = {"b": np.ones((2, 2), np.float32), "a": np.zeros(3, np.float32)}
    write_torch(tmp_path / "x.bin", weights)
    with zipfile.ZipFile(tmp_path / "x.bin") as archive:
        ours = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    assert ours.keys() == theirs.keys() - {
        ".format_version",
        ".storage_alignment",
        ".data/serialization_id",
    }
    for name in ("byteorder", "data/0", "data/1", "version"):
        assert ours[name] == theirs[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("legacy", "before version 1.6; load it with torch and save it again"),
        ("nested", "'a' is a dict and not a tensor"),
        ("expanded", "its elements overlap, as an expanded tensor's do"),
    ],
)
def test_what_torch_saves_and_no_model_needs_is_refused(name: str, words: str) -> None:
    refuse(GOLDEN / f"torch_{name}.bin", words)


def test_a_whole_module_is_refused_by_the_name_of_its_class() -> None:
    refuse(
        GOLDEN / "torch_module.bin",
        "names torch.nn.modules.container.Sequential",
        "nothing was run",
        error=UnsafeCheckpointError,
    )


def test_a_slice_of_rows_costs_its_own_bytes_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_torch(path, {"big": np.ones((1000, 1000), np.float32)})
    reader = TorchBinFile(path)
    reader.read("big", (slice(0, 1),))  # what is allocated once is not the read's
    tracemalloc.start()
    block = reader.read("big", (slice(7, 8), slice(0, 500)))
    columns = reader.read("big", (slice(None), slice(3, 5)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (block.nbytes, columns.nbytes) == (2000, 8000)
    assert peak < 100_000  # of 4 MB


class Gadget:
    """Pickled as a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


class WithState:
    def __reduce__(self) -> tuple:
        return OrderedDict, (), {"run": Gadget(os.system, "touch ran")}


class WithItems:
    def __reduce__(self) -> tuple:
        return OrderedDict, (), None, None, iter([("a", Gadget(os.system, "touch ran"))])


def dumped(value: object, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol)


RUN = "__import__('os').mkdir('ran')"
OS_SYSTEM = b"cos\nsystem\n"
BOMBS = {
    "os.system": (dumped(Gadget(os.system, "touch ran")), "posix.system"),
    "os.system by protocol 0": (dumped(Gadget(os.system, "touch ran"), 0), "posix.system"),
    "os.system by protocol 4": (dumped(Gadget(os.system, "touch ran"), 4), "posix.system"),
    "eval": (dumped(Gadget(eval, RUN)), "__builtin__.eval"),
    "eval by protocol 5": (dumped(Gadget(eval, RUN), 5), "builtins.eval"),
    "getattr": (dumped(Gadget(getattr, OrderedDict, "fromkeys")), "__builtin__.getattr"),
    "a value": (dumped({"a": Gadget(os.system, "touch ran")}), "posix.system"),
    "a value inside": (dumped({"a": [({"b": Gadget(os.system, "x")},)]}), "posix.system"),
    "an argument": (dumped(Gadget(OrderedDict, Gadget(os.system, "x"))), "posix.system"),
    "the state of a state dict": (dumped(WithState()), "posix.system"),
    "an item of a state dict": (dumped(WithItems()), "posix.system"),
    "torch.load": (b"ctorch\nload\n(X\x01\x00\x00\x00xtR.", "torch.load"),
    "torch.hub.load": (b"ctorch.hub\nload\n(X\x01\x00\x00\x00xtR.", "torch.hub.load"),
    "torch.storage._load_from_bytes": (
        b"ctorch.storage\n_load_from_bytes\n(X\x01\x00\x00\x00xtR.",
        "torch.storage._load_from_bytes",
    ),
    "a dotted name": (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "__globals__"),
    "dots in a name on the stack": (
        b"\x80\x04" + text("torch") + text("FloatStorage.__init__") + b"\x93.",
        "torch.FloatStorage.__init__",
    ),
    "a global whose name is no text": (b"\x80\x04" + text("os") + b"K\x01\x93.", "is not text"),
    "a call of a storage type": (b"ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
    "a call of text": (text("os.system") + b")R.", "calls a str"),
    "a call of what was built": (b"ccollections\nOrderedDict\n)R)R.", "calls a dict"),
    "INST": (b"(X\x01\x00\x00\x00xios\nsystem\n.", "os.system"),
    "OBJ": (b"(" + OS_SYSTEM + b"o.", "os.system"),
    "OBJ of what is known": (b"(ccollections\nOrderedDict\no.", "OBJ"),
    "NEWOBJ": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
    "EXT1": (b"\x80\x02\x82\x01.", "extension code 1"),
    "EXT2": (b"\x80\x02\x83\x01\x02.", "extension code 513"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "extension code 1"),
    "copyreg": (b"ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
    "the state of a function": (
        b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__code__") + b"Nsb.",
        "sets the state of torch._utils._rebuild_tensor_v2",
    ),
    "the state of a tensor": (
        tensor("0", (1,)) + b"}" + text("dtype") + b"Nsb.",
        "sets the state of a tensor",
    ),
    "a setter as the state": (
        b"ccollections\nOrderedDict\n)R}" + text("__setstate__") + OS_SYSTEM + b"sb.",
        "os.system",
    ),
    "letters that steer a terminal": (b"c\x1b[2J\x1b[31m\nos\n.", r"names \x1b[2J\x1b[31m.os"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("before", [b"", b"\x80\x02}" + text("w") + tensor("0", (1,)) + b"s"])
def test_a_bomb_is_named_and_does_not_go_off(
    bomb: str, before: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, words = BOMBS[bomb]
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "x.bin", before + code, {"0": ONE})
    refuse(tmp_path / "x.bin", words, "nothing was run", error=UnsafeCheckpointError)
    assert os.listdir(tmp_path) == ["x.bin"]


def test_the_bombs_are_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(BOMBS["eval"][0])
    assert os.listdir(tmp_path) == ["ran"]


LAUGHS = b"\x80\x02}N" + b"q\x00h\x00\x86" * 60  # a tuple of itself and itself, 60 times over


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (b"", "its pickle is damaged"),
        (b"\x80\x02", "its pickle is damaged"),
        (b"\xff", "its pickle is damaged"),
        (b"N.", "it holds None in the place of a dictionary"),
        (tensor("0", (1,)) + b".", "it holds a tensor"),
        (b"]" + tensor("0", (1,)) + b"a.", "it holds a list"),
        (pickled({"w": b"K\x03"}), "'w' is an int and not a tensor"),
        (b"}K\x01" + tensor("0", (1,)) + b"s.", "a name in it is an int and not text"),
        (b"}(" + (text("w") + tensor("0", (1,))) * 2 + b"u.", "it holds 'w' twice"),
        (b".", "its pickle is damaged"),
        (b"h\x07.", "its pickle is damaged"),
        (b"t.", "its pickle is damaged"),
        (b"N" + text("a") + b"Ns.", "items are put into"),
        (b"(((" + b"(" * 1000, "nested too deeply"),
        (b"r\xff\xff\xff\xff.", "its pickle is damaged"),
        (b"Nr\xff\xff\xff\xff.", "it holds None"),  # a memo of 4 billion places elsewhere
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.", "it holds None"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "its pickle is damaged"),
        (b"\x8b\xff\xff\xff\x7f.", "its pickle is damaged"),
        (LAUGHS + b"Ns.", "a name in it is a tuple"),  # its hash would never be done
        (b"}" + text("w") + LAUGHS[3:] + b"s.", "'w' is a tuple and not a tensor"),
        (LAUGHS + b"Q.", "it refers to something outside that is no storage"),
        (b"Pwhatever\n.", "PERSID"),
        (b"(" + text("module") + b"tQ.", "no storage"),
        (b"c__main__\n.", "its pickle is damaged"),
        (b"F1.5\n.", "FLOAT"),
        (b"L" + b"9" * 5000 + b"L\n.", "its pickle is damaged"),
    ],
)
def test_a_pickle_of_something_else_is_refused(code: bytes, words: str, tmp_path: Path) -> None:
    write_archive(tmp_path / "x.bin", code, {"0": ONE})
    refuse(tmp_path / "x.bin", "is not a torch checkpoint of named tensors", words)


SIX = np.arange(6, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (tensor("1", (6,)), "its storage '1' is missing"),
        (tensor("../0", (6,)), "its storage '../0' is missing"),
        (tensor("0", (5,)), "its storage has 24 bytes and the pickle says 20"),
        (tensor("0", (6,), dtype="float64"), "its storage has 24 bytes and the pickle says 48"),
        (tensor("0", (6,), dtype="float16"), "its storage has 24 bytes and the pickle says 12"),
        (tensor("0", (6,), size=2**62), "its storage has 24 bytes"),
        (tensor("0", (6,), size=-6), "a number out of range"),
        (tensor("0", (2**40,), size=6), "reaches beyond the end"),
        (tensor("0", (6,), offset=1), "reaches beyond the end"),
        (tensor("0", (2,), size=6, offset=2**62), "reaches beyond the end"),
        (tensor("0", (2,), size=6, offset=-1), "a number out of range"),
        (tensor("0", (-6,), size=6), "a number out of range"),
        (tensor("0", (2**100,), size=6), "a number out of range"),
        (tensor("0", (6,), strides=(-1,)), "a number out of range"),
        (tensor("0", (2, 3), strides=(4, 1)), "reaches beyond the end"),
        (tensor("0", (2**40,), size=6, strides=(0,)), "its elements overlap"),
        (tensor("0", (2, 3), strides=(1,)), "2 sizes and 1 strides"),
        (tensor("0", (1,) * 33, size=6), "33 sizes"),
        (tensor("0", (6,)).replace(number(6), b"\x88"), "is a bool"),
        (tensor("0", (6,)).replace(b"\x89", b"N"), "other arguments"),
        (
            b"ctorch._utils\n_rebuild_tensor_v2\nNR",
            "a call is given None",
        ),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "other arguments"),
        (b"ctorch._utils\n_rebuild_tensor_v3\n)R", "other arguments"),
        (b"ctorch._utils\n_rebuild_parameter\n)R", "a parameter is given no tensor"),
        (b"ccollections\nOrderedDict\n(NtR", "an OrderedDict is given items"),
        (
            tensor("0", (6,))[:-2] + b"}" + text("conj") + b"\x88stR",
            "conjugated or negated",
        ),
    ],
)
def test_a_tensor_that_lies_elsewhere_is_refused(code: bytes, words: str, tmp_path: Path) -> None:
    write_archive(tmp_path / "x.bin", pickled({"w": code}), {"0": SIX})
    refuse(tmp_path / "x.bin", words)


def rewritten(path: Path, change: Callable[[zipfile.ZipFile], Any], **options: Any) -> Path:
    """A sound checkpoint of one tensor `w`, with something more put into its zip file."""
    write_archive(path, pickled({"w": tensor("0", (6,))}), {"0": SIX})
    with zipfile.ZipFile(path, "a", **options) as archive:
        change(archive)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("../evil", UnsafeCheckpointError, "'../evil' lies outside of 'archive'"),
        ("/etc/passwd", UnsafeCheckpointError, "'/etc/passwd' lies outside"),
        ("archive/../../evil", UnsafeCheckpointError, "lies outside"),
        ("archive\\..\\evil", UnsafeCheckpointError, "lies outside"),
        ("other/data/0", UnsafeCheckpointError, "lies outside"),
        ("archive/data/0", InvalidCheckpointError, "'archive/data/0' is in it twice"),
        ("other/data.pkl", InvalidCheckpointError, "not a torch checkpoint"),
    ],
)
def test_a_member_that_does_not_belong_there_is_refused(
    name: str, error: type[Glm3Error], words: str, tmp_path: Path
) -> None:
    path = rewritten(tmp_path / "x.bin", lambda archive: archive.writestr(name, b"x"))
    refuse(path, words, error=error)


def test_a_compressed_member_is_refused(tmp_path: Path) -> None:
    path = rewritten(
        tmp_path / "x.bin",
        lambda archive: archive.writestr("archive/data/1", b"0" * 10_000),
        compression=zipfile.ZIP_DEFLATED,
    )
    refuse(path, "'archive/data/1' is compressed or encrypted")


def test_a_pickle_longer_than_any_model_needs_is_refused_unread(tmp_path: Path) -> None:
    write_archive(tmp_path / "x.bin", b"N" * (MAX_PICKLE_BYTES + 1), {})
    refuse(tmp_path / "x.bin", f"a member of {MAX_PICKLE_BYTES + 1} bytes")


def test_a_file_of_a_big_endian_machine_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / "x.bin", pickled({"w": tensor("0", (6,))}), {"0": SIX})
    content = (tmp_path / "x.bin").read_bytes()
    other = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(other, "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    (tmp_path / "x.bin").write_bytes(other.getvalue())
    refuse(tmp_path / "x.bin", "big-endian machine")


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file" * 10, b"\x80\x02}."])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    refuse(tmp_path / "x.bin", "truncated or not a torch checkpoint")


def test_a_zip_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("readme.txt", b"hello")
    refuse(tmp_path / "x.bin", "not a torch checkpoint (no data.pkl)")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere.bin", "cannot be read: No such file")
    os.mkfifo(tmp_path / "pipe.bin")
    refuse(tmp_path / "pipe.bin", "is not a plain file")
    refuse(tmp_path, "is not a plain file")


def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "x.bin", lambda archive: None)
    reader = TorchBinFile(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidCheckpointError, match="truncated or has changed"):
        reader.read("w")
    path.unlink()
    with pytest.raises(InvalidCheckpointError, match="No such file"):
        reader.read("w")


def test_a_flipped_byte_of_a_tensor_is_found_by_torchs_own_checksum(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "x.bin", lambda archive: None)
    content = path.read_bytes().replace(SIX, SIX[:-1] + b"\x77")
    path.write_bytes(content)
    refuse(path, "the bytes of tensor w do not have their checksum", name="w")


CONTENT = (GOLDEN / "torch_state_dict.bin").read_bytes()


@given(st.data())
def test_no_damage_gives_anything_but_tensors_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    read_or_refuse(tmp_path_factory.mktemp("flip") / "x.bin", bytes(content))


def test_no_flipped_byte_gives_anything_but_tensors_or_a_typed_error(
    tmp_path: Path,
) -> None:
    for place in range(0, len(CONTENT), 5):
        changed = CONTENT[:place] + bytes([CONTENT[place] ^ 0xFF]) + CONTENT[place + 1 :]
        read_or_refuse(tmp_path / "x.bin", changed)


def test_no_truncated_file_is_read(tmp_path: Path) -> None:
    for size in range(0, len(CONTENT), 13):
        (tmp_path / "x.bin").write_bytes(CONTENT[:size])
        refuse(tmp_path / "x.bin", "truncated or not a torch checkpoint")


def read_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        reader = TorchBinFile(path)
        for name in reader.tensors:
            reader.read(name)
    except InvalidCheckpointError as exc:
        assert str(path) in str(exc)  # noqa: PT017  # both ends are right, as long as one is


# Opcodes at random, the dangerous ones among them, on a stack that has something.
OPCODES = st.sampled_from(
    [
        *(bytes([code]) for code in range(256)),
        *(b"cos\nsystem\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"),
        *(text("a"), text("storage"), b"K\x01", b")", b"}", b"]", b"(", b"N", b"R", b"b", b"\x93"),
        *(b"q\x00", b"h\x00", b"\x85", b"\x86", b"\x87", b"t", b"u", b"s", b"e", b"a", b"Q"),
        tensor("0", (1,)),
    ]
)


@given(st.lists(OPCODES, max_size=40))
def test_no_pickle_gives_anything_but_tensors_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, codes: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("codes") / "x.bin"
    write_archive(path, b"\x80\x02" + b"".join(codes) + b".", {"0": ONE})
    read_or_refuse(path, path.read_bytes())
