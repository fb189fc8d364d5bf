"""What a person hands over in files and on standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm3sdk.errors import UserError


def read_json(path: str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing, not UTF-8 or not JSON; the message has line and column.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise UserError(f"cannot read {path!r}: {exc.strerror}") from exc
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode("utf-8")
        place = f"{path}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise UserError(f"{place}: not UTF-8 (byte {data[exc.start]:#x}); save it so") from exc
    except json.JSONDecodeError as exc:
        raise UserError(f"{path}:{exc.lineno}:{exc.colno}: not JSON: {exc.msg}") from exc
    except (ValueError, RecursionError) as exc:
        raise UserError(f"{path}: JSON that cannot be read: {exc}") from exc


def read_json_list(path: str, name: str) -> list[Any]:
    """Read a JSON list, or the list under `name` in a JSON object.

    Raises:
        UserError: the file cannot be read, or holds neither.
    """
    value = read_json(path)
    if isinstance(value, Mapping):
        value = value.get(name)
    if not isinstance(value, list):
        raise UserError(
            f'{path}: expected a list of {name}, or an object {{"{name}": [...]}} that holds it'
        )
    return value


def stdin_is_terminal() -> bool:
    """Whether a person may be asked for more."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_stdin() -> str:
    """Read all of standard input but the newline that ends it.

    Bytes that are not UTF-8 become half characters, which every message refuses.
    """
    # None where a shell closed it.
    data: bytes = b"" if sys.stdin is None else sys.stdin.buffer.read()
    return data.decode("utf-8", "surrogateescape").removesuffix("\n")
