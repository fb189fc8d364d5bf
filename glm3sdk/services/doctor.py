"""Checks of an installation: what one found, and running several so that none spoils the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from enum import StrEnum

import attrs

from glm3sdk.errors import Glm3Error

_REPORT = "report it, with the output of `glm3 doctor --json`"


class Status(StrEnum):
    """What a check says."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@attrs.frozen
class Check:
    """What a check found.

    Attributes:
        name: what was checked.
        status: FAIL means that something will not work, WARN that it may not work well.
        detail: what was found.
        remedy: what to do; every FAIL and WARN has one.
    """

    name: str
    status: Status
    detail: str
    remedy: str = attrs.field(default="")

    @remedy.validator
    def _check_remedy(self, _: attrs.Attribute[str], value: str) -> None:
        if self.status in (Status.FAIL, Status.WARN) and not value:
            raise ValueError(f"check {self.name!r} says {self.status} and not what to do")


Probe = Callable[[], Check]
"""Looks and tells; it may raise."""


def passed(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name, Status.OK, detail)


def skipped(name: str, detail: str) -> Check:
    """It does not apply here, or cannot be known."""
    return Check(name, Status.SKIPPED, detail)


def warned(name: str, detail: str, remedy: str) -> Check:
    """It may not work well."""
    return Check(name, Status.WARN, detail, remedy)


def failed(name: str, detail: str, remedy: str) -> Check:
    """It will not work."""
    return Check(name, Status.FAIL, detail, remedy)


def run_checks(
    probes: Mapping[str, Probe],
    *,
    timeout_s: float,
    on_check: Callable[[Check], None] = lambda _: None,
) -> tuple[Check, ...]:
    """Run checks one after the other.

    One that raises has failed for that reason, and one that takes too long is left behind.

    Args:
        probes: by name, in order.
        timeout_s: seconds for each.
        on_check: is told of each as it ends.
    """
    checks = []
    for name, probe in probes.items():
        checks.append(_run(name, probe, timeout_s))
        on_check(checks[-1])
    return tuple(checks)


def _run(name: str, probe: Probe, timeout_s: float) -> Check:
    found: list[Check] = []

    def look() -> None:
        try:
            found.append(probe())
        except Glm3Error as exc:
            # Its message has the remedy in it.
            found.append(failed(name, str(exc), "do what the message says"))
        except BaseException as exc:  # whatever it was, the other checks go on
            text = next(iter(str(exc).strip().splitlines()), "")
            found.append(failed(name, f"{type(exc).__name__}: {text}".rstrip(": "), _REPORT))

    # A thread can be left behind where it waits for a file system that does not answer.
    thread = threading.Thread(target=look, name=f"doctor-{name}", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not found:
        return failed(
            name,
            f"no answer after {timeout_s:g} s",
            "see whether the machine is busy or a file system hangs, or raise --timeout",
        )
    return found[0]
