"""Trying again what a blob store could not do just now."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from glm3sdk.errors import BlobUnavailableError

T = TypeVar("T")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 20.0
LONGEST_RETRY_AFTER_S = 60.0


class BusyError(BlobUnavailableError):
    """A blob store that said when to come back (HTTP: Retry-After).

    Attributes:
        retry_after_s: how long it asked to be left alone.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def retried(
    action: Callable[[], T],
    *,
    attempts: int = 6,
    sleep: Callable[[float], None] = time.sleep,
    uniform: Callable[[float, float], float] = random.uniform,
) -> T:
    """Do something, and again after each `BlobUnavailableError`, up to `attempts` times.

    The wait before the n-th retry is chosen between nothing and 0.2 s * 2^(n-1), at most 20 s
    ("full jitter": clients that failed together do not come back together). A store that says
    when to come back is waited for so long, at most a minute.

    Args:
        action: what to do; it must be harmless to repeat.
        attempts: how often at most, from 1.
        sleep: waits, in seconds; what it raises ends the tries.
        uniform: draws the wait, given the shortest and the longest.

    Returns:
        What `action` returned.

    Raises:
        BlobUnavailableError: the last one; it says how often was tried. Any other error of
            `action` passes at once.
    """
    for number in range(1, attempts):
        try:
            return action()
        except BusyError as exc:
            wait = min(exc.retry_after_s, LONGEST_RETRY_AFTER_S) + uniform(0.0, FIRST_WAIT_S)
        except BlobUnavailableError:
            wait = uniform(0.0, min(FIRST_WAIT_S * 2.0 ** (number - 1), LONGEST_WAIT_S))
        sleep(wait)
    try:
        return action()
    except BlobUnavailableError as exc:
        tries = "once" if attempts <= 1 else f"{attempts} times"
        raise BlobUnavailableError(f"{exc} (tried {tries})") from exc
