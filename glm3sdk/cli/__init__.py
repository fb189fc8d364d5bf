"""The command `glm3`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from glm3sdk.cli.interrupts import INTERRUPTED, take_interrupts

if TYPE_CHECKING:
    from glm3sdk.cli.loading import Loaders


def main(arguments: Sequence[str] | None = None, *, loaders: Loaders | None = None) -> NoReturn:
    """Run the command line and exit: 0, 1 for a failure, 2 for a mistake, 130 for Ctrl-C.

    Args:
        arguments: the command and its options; by default the process's own.
        loaders: where models and tokenizers come from; by default `glm3sdk.bootstrap`.
    """
    try:
        take_interrupts()
        _speak_utf8()
        from glm3sdk.cli.app import app

        app.main(arguments, prog_name="glm3", obj=loaders)
    except KeyboardInterrupt:
        _leave_at_once(INTERRUPTED)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            _leave_at_once(INTERRUPTED)
        raise
    except OSError as exc:  # help that cannot be printed; commands report their own
        from glm3sdk.cli.failures import system_failure

        failure = system_failure(exc)
        failure.show()
        raise SystemExit(failure.exit_code) from exc
    raise SystemExit(0)


def _speak_utf8() -> None:
    """Chinese must pass under LC_ALL=C too, and nothing that is shown may raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")


def _leave_at_once(code: int) -> NoReturn:
    # An ordinary exit tears MindSpore down under a step or a compilation that still runs.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
