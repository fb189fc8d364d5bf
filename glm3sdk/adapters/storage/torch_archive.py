"""The zip file that torch saves a checkpoint as: where in it the pickle and the storages lie.

NAME/data.pkl is the pickle, NAME/data/KEY the bytes of a storage, NAME/byteorder their order;
all are stored as they are (`caffe2/serialize/inline_container.cc`, torch 1.6 to 2.13).
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import attrs

from glm3sdk.adapters.storage.torch_pickle import MAX_PICKLE_BYTES
from glm3sdk.errors import InvalidCheckpointError, UnsafeCheckpointError

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_MAGIC = b"PK\x03\x04"
# A pickled number, with which torch began its files up to version 1.5.
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_ENCRYPTED = 1
_AT_ONCE = 1024 * 1024 * 1024  # the system reads no more than 2 GiB at a time


@attrs.frozen
class Member:
    """Where in the file the bytes of a storage lie.

    Attributes:
        offset: of the first byte.
        size: in bytes.
        crc: CRC-32 of the bytes; 0 where the writer took none.
    """

    offset: int
    size: int
    crc: int


@attrs.frozen
class TorchArchive:
    """What a checkpoint's zip file holds.

    Attributes:
        path: the file.
        state: tells the file from one that was changed.
        pickle: the bytes of data.pkl.
        storages: every storage by its key.
    """

    path: Path
    state: tuple[int, ...]
    pickle: bytes
    storages: Mapping[str, Member]

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the file, which must be as it was.

        Raises:
            InvalidCheckpointError: the file has changed or cannot be read.
        """
        with reading(self.path), self.path.open("rb") as file:
            if _state(file) != self.state:
                raise InvalidCheckpointError(
                    f"{self.path} is truncated or has changed since it was opened; open it again"
                )
            yield file.fileno()


def open_archive(path: Path) -> TorchArchive:
    """Read the zip file's directory and the pickle.

    Raises:
        InvalidCheckpointError: no such file, truncated, of another format or compressed.
        UnsafeCheckpointError: a member of it lies outside.
    """
    with reading(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidCheckpointError(f"{path} is not a plain file; pass the path of one")
        with path.open("rb") as file:
            members = _members(path, file)
            root = _root(path, members)
            order = members.get(f"{root}/byteorder")
            if order and _content(path, file, order, most=16).strip() != b"little":
                raise InvalidCheckpointError(
                    f"{path} was saved on a big-endian machine; load it with torch and save it "
                    "again on another one"
                )
            pickled = members[f"{root}/data.pkl"]
            prefix = f"{root}/data/"
            return TorchArchive(
                path,
                _state(file),
                _content(path, file, pickled, most=MAX_PICKLE_BYTES),
                {
                    name.removeprefix(prefix): member
                    for name, member in members.items()
                    if name.startswith(prefix)
                },
            )


def read_into(path: Path, descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill a buffer with the bytes of a file from an offset on.

    Raises:
        InvalidCheckpointError: the file ends before.
    """
    while buffer:
        count = os.preadv(descriptor, [buffer[:_AT_ONCE]], offset)
        if not count:
            raise _damaged(path, f"it ends at byte {offset}")
        buffer, offset = buffer[count:], offset + count


def check_crc(path: Path, name: str, member: Member, data: memoryview) -> None:
    """Compare bytes with the CRC that the file has of them.

    Raises:
        InvalidCheckpointError: they differ.
    """
    if member.crc and zlib.crc32(data) != member.crc:
        raise InvalidCheckpointError(
            f"{path} is damaged: the bytes of {name} do not have their checksum; download it again"
        )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an InvalidCheckpointError that names the path."""
    try:
        yield
    except OSError as exc:
        raise InvalidCheckpointError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _members(path: Path, file: BinaryIO) -> dict[str, Member]:
    begin = file.read(len(_LEGACY_MAGIC))
    if begin == _LEGACY_MAGIC:
        raise InvalidCheckpointError(
            f"{path} was saved in torch's format before version 1.6; load it with torch and save "
            "it again with torch.save"
        )
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    # What the standard library raises on files that are only nearly zip files.
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, EOFError) as exc:
        raise _damaged(path, exc) from exc
    size = os.fstat(file.fileno()).st_size
    members: dict[str, Member] = {}
    for entry in entries:
        name = entry.filename
        if name in members:
            raise _damaged(path, f"{name!r} is in it twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
            raise InvalidCheckpointError(
                f"{path}: {name!r} is compressed or encrypted, which torch does not do; save it "
                "again with torch.save"
            )
        offset = _begin_of(path, file, entry)
        if entry.compress_size != entry.file_size or offset + entry.file_size > size:
            raise _damaged(path, f"{name!r} does not lie inside the file")
        members[name] = Member(offset, entry.file_size, entry.CRC)
    return members


def _begin_of(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: its own header may be longer than the directory says."""
    if entry.header_offset < 0:
        raise _damaged(path, f"{entry.filename!r} does not lie inside the file")
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_MAGIC):
        raise _damaged(path, f"{entry.filename!r} has no header where the directory says")
    _, name_size, extra_size = _LOCAL_HEADER.unpack(header)
    return entry.header_offset + len(header) + int(name_size) + int(extra_size)


def _root(path: Path, members: Mapping[str, Member]) -> str:
    """The name that all members' names begin with."""
    found = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    roots = [root for root in found if "/" not in root]
    if len(roots) != 1:
        raise InvalidCheckpointError(
            f"{path} is a zip file and not a torch checkpoint (no data.pkl); pass another file"
        )
    for name in members:
        parts = name.split("/")
        if parts[0] != roots[0] or ".." in parts or "\\" in name:
            raise UnsafeCheckpointError(
                f"{path}: its member {name!r} lies outside of {roots[0]!r}; nothing was read. Get "
                "the model again from its publisher"
            )
    return roots[0]


def _content(path: Path, file: BinaryIO, member: Member, *, most: int) -> bytes:
    if member.size > most:
        raise InvalidCheckpointError(
            f"{path} has a member of {member.size} bytes where a checkpoint of weights has at most "
            f"{most}; save the model's state_dict alone"
        )
    data = bytearray(member.size)
    read_into(path, file.fileno(), memoryview(data), member.offset)
    check_crc(path, "its pickle", member, memoryview(data))
    return bytes(data)


def _state(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _damaged(path: Path, reason: object) -> InvalidCheckpointError:
    return InvalidCheckpointError(
        f"{path} is truncated or not a torch checkpoint ({reason}); download it again"
    )
