"""How launchers of a job keep together: the leading one, and the others that watch it.

Each sends something every `every_s` seconds; who is silent for `silence_s` is taken for gone,
for a link that is cut closes no connection. The leader listens on its own address only and
compares a token, so that launchers of another job, or what else finds the port, stay out.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs

from glm3sdk.adapters.cluster.coordination import Failure, Finish, Order, Start
from glm3sdk.adapters.cluster.lines import BadMessageError, field

PING = {"ping": 0}
"""A sign of life."""


@attrs.frozen(kw_only=True)
class Pace:
    """How launchers watch each other, in seconds.

    Attributes:
        every_s: between two signs of life.
        silence_s: after which a launcher is taken for gone.
        join_s: for all launchers to come.
    """

    every_s: float = 2.0
    silence_s: float = 20.0
    join_s: float = 600.0


class Link(Protocol):
    """One launcher's place among the others. Orders come through `obey`, given to `begin`."""

    def begin(self, selector: selectors.BaseSelector, obey: Callable[[Order, int], None]) -> None:
        """Start to meet the others; `obey` gets each order, and the scheduler's port to use."""

    def tick(self) -> None:
        """Time has passed."""

    def done(self) -> None:
        """Every rank of this node has ended well."""

    def fail(self, failure: Failure) -> None:
        """The job should end."""

    def ended(self) -> None:
        """No rank of this node is left, after a stop."""

    def close(self) -> None:
        """Leave."""


def read_failure(values: Mapping[str, Any]) -> Failure:
    """A failure that another launcher tells of.

    Raises:
        BadMessageError: these are not its values.
    """
    lines = field(values, "last_lines", list)
    if not all(isinstance(line, str) for line in lines):
        raise BadMessageError("last_lines")
    return Failure(
        field(values, "message", str),
        # An exit code of 0 would call a failure a success.
        min(255, max(1, field(values, "exit_code", int))),
        tuple(lines),
        restart=field(values, "restart", bool),
        asked=field(values, "asked", bool),
    )


def written(order: Order, port: int) -> dict[str, Any]:
    """An order as it is sent."""
    if isinstance(order, Start):
        return {"start": order.attempt, "port": port}
    if not isinstance(order, Finish):
        return {"stop": attrs.asdict(order.failure)}
    return {"finish": None if order.failure is None else attrs.asdict(order.failure)}
