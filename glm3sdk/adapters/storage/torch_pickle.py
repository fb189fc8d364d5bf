"""The pickle inside a torch checkpoint, read by an interpreter that can only build tensors' places.

`pickle.Unpickler` with its `find_class` overridden would still hash what it is told to hash,
fill a memo of any size and set attributes of what it is given. So the opcodes, which
`pickletools` decodes, are carried out here: those that torch writes for a dictionary of
tensors, on values of our own that nothing can be called on. No module is ever looked up.

What torch writes: `torch/_utils.py` and `torch/serialization.py` of torch 1.6 to 2.13.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from glm3sdk.errors import InvalidCheckpointError, UnsafeCheckpointError

MAX_PICKLE_BYTES = 2 * 1024 * 1024  # some 12,000 tensors; ChatGLM3-6B has 200
_MOST_MARKS = 64
_LARGEST = 2**63 - 1
_MOST_DIMENSIONS = 32

_STORAGES: Mapping[str, str] = {
    "torch DoubleStorage": "float64",
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
    "torch.storage UntypedStorage": "uint8",
}
# Dtypes without a storage class of their own: `_rebuild_tensor_v3` names them.
_DTYPES: Mapping[str, str] = {
    f"torch {dtype}": dtype
    for dtype in ("uint16", "uint32", "uint64", "float16", "bfloat16", "float32", "float64")
}


@attrs.frozen
class StoredTensor:
    """Where a tensor lies: in elements of its dtype, inside a storage.

    Attributes:
        storage: the key of the storage.
        storage_dtype: what the storage's size counts.
        storage_size: elements of the storage.
        dtype: of the tensor.
        offset: of its first element.
        shape: its sizes.
        strides: how far a step in each dimension goes.
    """

    storage: str
    storage_dtype: str
    storage_size: int
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Malformed(Exception):
    """Not the pickle of a state dict; the message says why."""


@attrs.frozen
class _Global:
    """A name that a pickle may mention, and nothing more."""

    name: str


@attrs.frozen
class _Storage:
    key: str
    dtype: str
    size: int


def read_tensors(data: bytes, file: str) -> dict[str, StoredTensor]:
    """The tensors of a pickled state dict by name. Nothing is imported and nothing is run.

    Args:
        data: the pickle, at most `MAX_PICKLE_BYTES` long.
        file: the checkpoint, for messages.

    Raises:
        UnsafeCheckpointError: it mentions another global, or tries to call or build anything
            else; the message names it.
        InvalidCheckpointError: it is damaged, or not a dictionary of tensors.
    """
    try:
        found = _Interpreter(file).run(data)
        if not isinstance(found, dict):
            raise _Malformed(f"it holds {_kind(found)} in the place of a dictionary of tensors")
        for name, value in found.items():
            if not isinstance(value, StoredTensor):
                raise _Malformed(f"{name!r:.100} is {_kind(value)} and not a tensor")
    except (_Malformed, ValueError, IndexError, KeyError) as exc:
        reason = exc if isinstance(exc, _Malformed) else "its pickle is damaged"
        raise InvalidCheckpointError(
            f"{file} is not a torch checkpoint of named tensors: {reason}; download it again, "
            "or save the model's state_dict alone"
        ) from exc
    return found


class _Interpreter:
    def __init__(self, file: str) -> None:
        self._file = file
        self._stacks: list[list[Any]] = [[]]  # a mark begins another
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                return self._pop()
            if name in _LITERALS:
                self._push(argument)
            elif name in _CONSTANTS:
                self._push(_CONSTANTS[name]())
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            elif name in _BUILDERS:
                raise self._unsafe(_BUILDERS[name].format(_dotted(str(argument))))
            elif name not in _IGNORED:
                raise _Malformed(f"torch does not write the pickle opcode {name}")
        raise _Malformed("its pickle has no end")

    def _push(self, value: Any) -> None:
        self._stacks[-1].append(value)

    def _pop(self) -> Any:
        return self._stacks[-1].pop()

    def mark(self, _argument: object) -> None:
        if len(self._stacks) > _MOST_MARKS:
            raise _Malformed("its pickle is nested too deeply")
        self._stacks.append([])

    def _since_mark(self) -> list[Any]:
        if len(self._stacks) == 1:
            raise IndexError
        return self._stacks.pop()

    def _top(self, kind: type) -> Any:
        """The dictionary or list that is being filled."""
        value = self._stacks[-1][-1]
        if type(value) is not kind:
            raise _Malformed(f"items are put into {_kind(value)}")
        return value

    def tuple1(self, _argument: object) -> None:
        self._push((self._pop(),))

    def tuple2(self, _argument: object) -> None:
        second, first = self._pop(), self._pop()
        self._push((first, second))

    def tuple3(self, _argument: object) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self._push((first, second, third))

    def tuple_since_mark(self, _argument: object) -> None:
        items = tuple(self._since_mark())
        self._push(items)

    def set_items(self, pairs: list[Any]) -> None:
        target = self._top(dict)
        if len(pairs) % 2:
            raise IndexError
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Hashing a tuple of tuples of the same tuples would take forever.
            if type(key) is not str:
                raise _Malformed(f"a name in it is {_kind(key)} and not text")
            if key in target:
                raise _Malformed(f"it holds {key!r:.100} twice")
            target[key] = value

    def set_item(self, _argument: object) -> None:
        value, key = self._pop(), self._pop()
        self.set_items([key, value])

    def set_items_since_mark(self, _argument: object) -> None:
        self.set_items(self._since_mark())

    def append(self, _argument: object) -> None:
        value = self._pop()
        self._top(list).append(value)

    def append_since_mark(self, _argument: object) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def put(self, index: Any) -> None:
        self._memo[index] = self._stacks[-1][-1]

    def memoize(self, _argument: object) -> None:
        self.put(len(self._memo))

    def get(self, index: Any) -> None:
        self._push(self._memo[index])

    def name_global(self, name: Any) -> None:
        if name not in _CALLS and name not in _STORAGES and name not in _DTYPES:
            raise self._unsafe(f"names {_dotted(name)}")
        self._push(_Global(name))

    def name_global_on_stack(self, _argument: object) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise self._unsafe("names a global that is not text")
        self.name_global(f"{module} {name}")

    def persistent(self, _argument: object) -> None:
        match self._pop():
            case ("storage", _Global(name=name), str(key), str(), int(size)) if name in _STORAGES:
                self._push(_Storage(key, _STORAGES[name], _natural(size)))
            case _:
                raise _Malformed("it refers to something outside that is no storage")

    def call(self, _argument: object) -> None:
        arguments, function = self._pop(), self._pop()
        if type(function) is not _Global or function.name not in _CALLS:
            raise self._unsafe(f"calls {_shown(function)}")
        if type(arguments) is not tuple:
            raise _Malformed(f"a call is given {_kind(arguments)}")
        self._push(_CALLS[function.name](arguments))

    def set_state(self, _argument: object) -> None:
        """A state dict carries `_metadata`, the versions of its modules: of no use here."""
        self._pop()
        target = self._stacks[-1][-1]
        if type(target) is not dict:
            raise self._unsafe(f"sets the state of {_shown(target)}")

    def _unsafe(self, what: str) -> UnsafeCheckpointError:
        return UnsafeCheckpointError(
            f"{self._file} {what}, which no checkpoint of weights needs; nothing was run. Do not "
            "load it with anything else: get the model again from its publisher"
        )


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise _Malformed("an OrderedDict is given items")
    return {}


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (StoredTensor() as tensor, bool(), dict(), *_):
            return tensor
    raise _Malformed("a parameter is given no tensor")


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (_Storage() as storage, offset, (*shape,), (*strides,), bool(), _, *more):
            dtype = storage.dtype
            return _placed(storage, dtype, offset=offset, shape=shape, strides=strides, more=more)
    raise _Malformed("a tensor is given other arguments than torch gives it")


def _tensor_of_dtype(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (
            _Storage() as storage,
            offset,
            (*shape,),
            (*strides,),
            bool(),
            _,
            _Global(name=name),
            *more,
        ) if name in _DTYPES:
            dtype = _DTYPES[name]
            return _placed(storage, dtype, offset=offset, shape=shape, strides=strides, more=more)
    raise _Malformed("a tensor is given other arguments than torch gives it")


def _placed(
    storage: _Storage,
    dtype: str,
    *,
    offset: object,
    shape: list[Any],
    strides: list[Any],
    more: list[Any],
) -> StoredTensor:
    if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
        raise _Malformed(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
    if any(more):
        raise _Malformed("a tensor is conjugated or negated")
    return StoredTensor(
        storage.key,
        storage.dtype,
        storage.size,
        dtype,
        _natural(offset),
        tuple(map(_natural, shape)),
        tuple(map(_natural, strides)),
    )


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        shown = "a number out of range" if type(value) is int else _kind(value)
        raise _Malformed(f"a size, a stride or an offset is {shown}")
    return value


def _kind(value: object) -> str:
    """What a value is, in a word; the value itself may be too large to show."""
    if value is None:
        return "None"
    if isinstance(value, StoredTensor):
        return "a tensor"
    name = type(value).__name__.strip("_")
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _shown(value: object) -> str:
    return _dotted(value.name) if isinstance(value, _Global) else _kind(value)


def _dotted(name: str) -> str:
    return repr(name.replace(" ", "."))[1:-1][:200]


_CALLS: Mapping[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
}

_IGNORED = {"PROTO", "FRAME"}
# Opcodes whose argument is the value.
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
# Opcodes that make or call something, in the ways that torch does not.
_BUILDERS = {
    "INST": "makes an instance of {}",
    "OBJ": "makes an instance of a class (OBJ)",
    "NEWOBJ": "makes an instance of a class (NEWOBJ)",
    "NEWOBJ_EX": "makes an instance of a class (NEWOBJ_EX)",
    "EXT1": "names the global of the extension code {}",
    "EXT2": "names the global of the extension code {}",
    "EXT4": "names the global of the extension code {}",
}
_ACTIONS: Mapping[str, Callable[[_Interpreter, Any], None]] = {
    "MARK": _Interpreter.mark,
    "TUPLE1": _Interpreter.tuple1,
    "TUPLE2": _Interpreter.tuple2,
    "TUPLE3": _Interpreter.tuple3,
    "TUPLE": _Interpreter.tuple_since_mark,
    "SETITEM": _Interpreter.set_item,
    "SETITEMS": _Interpreter.set_items_since_mark,
    "APPEND": _Interpreter.append,
    "APPENDS": _Interpreter.append_since_mark,
    "BINPUT": _Interpreter.put,
    "LONG_BINPUT": _Interpreter.put,
    "MEMOIZE": _Interpreter.memoize,
    "BINGET": _Interpreter.get,
    "LONG_BINGET": _Interpreter.get,
    "GLOBAL": _Interpreter.name_global,
    "STACK_GLOBAL": _Interpreter.name_global_on_stack,
    "BINPERSID": _Interpreter.persistent,
    "REDUCE": _Interpreter.call,
    "BUILD": _Interpreter.set_state,
}
