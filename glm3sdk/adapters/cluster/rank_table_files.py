"""Rank tables in files, and what a server tells of its own cards."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from glm3sdk.adapters.storage.whole_file import whole_file
from glm3sdk.domain.rank_table import COMPLETED, RankTable, parse_rank_table
from glm3sdk.domain.rank_table_generation import parse_hccn_conf, parse_hccn_tool
from glm3sdk.errors import InvalidRankTableError, UserError

HCCN_CONF = Path("/etc/hccn.conf")
# ModelArts names a directory; the platform writes this file into it.
_MODELARTS_FILE = "jobstart_hccl.json"
_MAX_BYTES = 64 * 1024 * 1024
_TOOL_TIMEOUT_S = 10


def read_rank_table(path: Path) -> RankTable:
    """Read a rank table of any format and check it.

    Args:
        path: the file, or a directory that holds jobstart_hccl.json.

    Raises:
        InvalidRankTableError: the message names the file and the field.
    """
    path = _file_of(path)
    return parse_rank_table(_read_json(path), source=str(path))


def wait_for_rank_table(
    path: Path,
    *,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RankTable:
    """Read a rank table that a platform may still be writing, until it is complete.

    Args:
        path: the file, or a directory that holds jobstart_hccl.json.
        timeout_s: longest wait in seconds.
        clock: seconds that pass.
        sleep: waits so many seconds.

    Raises:
        InvalidRankTableError: it is not complete in time, or cannot be used.
    """
    deadline = clock() + timeout_s
    while True:
        try:
            table = read_rank_table(path)
            if table.status == COMPLETED:
                return table
            problem = f"{_file_of(path)}: status: is {table.status!r}"
        except InvalidRankTableError as exc:
            # Not there yet, or caught while it was being written.
            problem = str(exc)
        if clock() >= deadline:
            raise InvalidRankTableError(
                f"{problem}; it was not complete after {timeout_s:g} s: see whether the platform "
                "has given this job its devices"
            )
        sleep(1.0)


def write_rank_table(directory: Path, name: str, table: RankTable) -> Path:
    """Write a table as the reference does, indented by 4; a file of that name is replaced.

    Raises:
        UserError: nothing can be written there.
    """
    path = directory / name
    with whole_file(path) as file:
        file.write((json.dumps(table.to_json(), indent=4) + "\n").encode())
    return path


def device_addresses(
    device_ids: Iterable[int], conf: Path | None = None
) -> tuple[dict[int, str], str]:
    """Addresses of a server's devices, from a hccn.conf or, without one, from hccn_tool.

    Args:
        device_ids: which devices.
        conf: a file in the format of /etc/hccn.conf; None asks hccn_tool, then that file.

    Returns:
        The addresses by device, and where they are from.

    Raises:
        InvalidRankTableError: there is neither the tool nor a file.
    """
    if conf is None:
        asked = {device_id: _ask_tool(device_id) for device_id in device_ids}
        addresses = {device_id: found for device_id, found in asked.items() if found}
        if addresses:
            return addresses, "hccn_tool"
        conf = HCCN_CONF
    try:
        return parse_hccn_conf(conf.read_text(encoding="utf-8", errors="replace")), str(conf)
    except OSError as exc:
        raise InvalidRankTableError(
            f"no addresses of devices: hccn_tool does not answer and {conf} cannot be read "
            f"({exc.strerror}); run this on the server, or pass --hccn_conf FILE"
        ) from exc


def own_address() -> str:
    """This host's address, as it is seen from outside.

    Raises:
        UserError: the host's name leads to no address.
    """
    # Connecting a datagram socket sends nothing; it only chooses the interface.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            pass
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as exc:
        raise UserError("this host's address is not known; pass --server_ip ADDRESS") from exc


def _ask_tool(device_id: int) -> str | None:
    try:
        answer = subprocess.run(  # noqa: S603  # a number of ours is the only argument
            ["hccn_tool", "-i", str(device_id), "-ip", "-g"],  # noqa: S607  # it lies on PATH
            capture_output=True,
            text=True,
            timeout=_TOOL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_hccn_tool(answer.stdout)


def _file_of(path: Path) -> Path:
    return path / _MODELARTS_FILE if path.is_dir() else path


def _read_json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise InvalidRankTableError(
            f"{path}: cannot be read: {reason}; pass a rank table's file"
        ) from exc
    if len(data) > _MAX_BYTES:
        raise InvalidRankTableError(f"{path}: is longer than {_MAX_BYTES} bytes")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise InvalidRankTableError(
            f"{path}: is not UTF-8 text ({exc.reason} at byte {exc.start})"
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidRankTableError(f"{path}: is not JSON: {exc}") from exc
