"""An operation that kills itself with SIGKILL at a chosen moment.

    python -m soak.killed pull '{"uri": "https://..."}' calls 17

A moment is an event (the operation told its progress) or a call (to the file system, of those
that change it), so that moments lie close together where much happens, on any machine. At
moment 0 nothing is killed: the operation ends and prints how many moments of each kind it had.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from glm3sdk import convert, load_finetune, pull
from glm3sdk.bootstrap.storage import checkpoint_store
from glm3sdk.ports.checkpoint_store import TensorSpec

# Python tells of these by itself; of those below it does not.
_AUDITED = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_UNAUDITED = ("write", "pwrite", "fsync", "fdatasync", "ftruncate", "posix_fallocate")

Told = Callable[..., None]


def pulling(told: Told, *, uri: str) -> object:
    return str(pull(uri, progress=told).path)


def converting(told: Told, **options: Any) -> object:
    return convert(progress=told, **options).destination


def saving(told: Told, *, uri: str, value: float) -> object:
    """A checkpoint of two files with tensors and a small one, all of one value."""
    writer = checkpoint_store(uri).create(uri)
    for file in ("model.safetensors", "optimizer.safetensors"):
        specs = {f"{file}.{name}": TensorSpec((3000,), "float32") for name in "ab"}

        def values(names: Any = tuple(specs)) -> Iterator[tuple[str, Any]]:
            for name in names:
                told()
                yield name, np.full(3000, value, np.float32)

        writer.add_tensors(file, specs, values())
    writer.add_file("value.json", str(value).encode())
    told()
    writer.commit()
    return uri


def finetuning(told: Told, *, config: dict[str, Any], resume: bool = False) -> object:
    return load_finetune(config).run(resume=resume, on_event=told).uri


OPERATIONS = {
    "pull": pulling,
    "convert": converting,
    "save": saving,
    "finetune": finetuning,
}


def main() -> None:
    operation, options, kind, number = sys.argv[1:]
    sys.dont_write_bytecode = True  # a write that only the first process makes
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    running = False

    def moment(of: str) -> None:
        if not running:
            return
        with lock:
            counts[of] += 1
            if of == kind and counts[of] == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if opened or event in _AUDITED:
            moment("calls")

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            moment("calls")
            return original(*arguments, **more)

        return call

    for name in _UNAUDITED:
        setattr(os, name, counted(getattr(os, name)))
    sys.addaudithook(audit)
    running = True
    result = OPERATIONS[operation](lambda *_: moment("events"), **json.loads(options))
    running = False
    print(json.dumps({"result": result, "events": counts["events"], "calls": counts["calls"]}))


if __name__ == "__main__":
    main()
