from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from glm3sdk.adapters.cluster.coordination import (
    Coordination,
    Failure,
    Finish,
    Order,
    Start,
    Stop,
)
from glm3sdk.adapters.cluster.leading_link import LeadingLink
from glm3sdk.adapters.cluster.lines import LONGEST
from glm3sdk.adapters.cluster.links import Pace
from glm3sdk.adapters.cluster.member_link import MemberLink
from glm3sdk.errors import LaunchError

PACE = Pace(every_s=1.0, silence_s=10.0, join_s=60.0)
DEAD = Failure("rank 1 died", 7, ("last words",), restart=True)
TOKEN = "a token"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Node:
    """A launcher without processes: it notes the orders."""

    def __init__(self, link: LeadingLink | MemberLink) -> None:
        self.link = link
        self.orders: list[Order] = []
        self.ports: list[int] = []
        self.selector = selectors.DefaultSelector()
        link.begin(self.selector, self.obey)

    def obey(self, order: Order, port: int) -> None:
        self.orders.append(order)
        if isinstance(order, Start):
            self.ports.append(port)

    def step(self) -> None:
        for key, mask in self.selector.select(0.01):
            key.data(mask)
        self.link.tick()


Nodes = Callable[..., Node]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def open_nodes() -> Iterator[list[Node]]:
    nodes: list[Node] = []
    yield nodes
    for node in reversed(nodes):  # members first: the leader waits for them
        node.link.close()
        node.selector.close()


@pytest.fixture
def lead(clock: Clock, port: int, open_nodes: list[Node]) -> Nodes:
    def make(*, members: tuple[int, ...] = (1,), **options: Any) -> Node:
        job = Coordination(own=0, members=members, max_restarts=options.pop("max_restarts", 0))
        options = {"token": TOKEN, "nproc": 2} | options
        link = LeadingLink(
            job,
            own=0,
            choose_port=lambda attempt: 9000 + attempt,
            address=("127.0.0.1", port),
            pace=PACE,
            clock=clock,
            **options,
        )
        open_nodes.append(Node(link))
        return open_nodes[-1]

    return make


@pytest.fixture
def member(clock: Clock, port: int, open_nodes: list[Node]) -> Nodes:
    def make(**options: Any) -> Node:
        options = {"node": 1, "nproc": 2, "token": TOKEN} | options
        link = MemberLink(("127.0.0.1", port), pace=PACE, clock=clock, **options)
        open_nodes.append(Node(link))
        return open_nodes[-1]

    return make


def until(condition: Callable[[], bool], *nodes: Node) -> None:
    for _ in range(1000):
        if condition():
            return
        for node in nodes:
            node.step()
    raise AssertionError([node.orders for node in nodes])


def both(lead: Nodes, member: Nodes, **options: Any) -> tuple[Node, Node]:
    first, other = lead(**options), member()
    until(lambda: other.orders == [Start(0)], first, other)
    return first, other


def test_nodes_start_together_and_finish_when_all_are_done(lead: Nodes, member: Nodes) -> None:
    first, other = both(lead, member)
    assert (first.ports, other.ports) == ([9000], [9000])
    other.link.done()
    first.step()
    assert first.orders == [Start(0)]
    first.link.done()
    until(lambda: len(other.orders) == 2, first, other)
    assert first.orders == other.orders == [Start(0), Finish(None)]


def test_a_failure_anywhere_stops_all_and_starts_all_again_at_a_port_of_its_own(
    lead: Nodes, member: Nodes, clock: Clock
) -> None:
    first, other = both(lead, member, max_restarts=1)
    other.link.fail(DEAD)
    until(lambda: len(other.orders) == 2, first, other)
    assert first.orders == other.orders == [Start(0), Stop(DEAD)]
    other.link.ended()
    first.link.ended()
    # Two seconds at a time, or both would be silent for too long.
    for _ in range(3):
        clock.now += 2.0
        for _ in range(3):
            first.step()
            other.step()
    until(lambda: len(other.orders) == 3, first, other)
    assert first.orders == other.orders == [Start(0), Stop(DEAD), Start(1)]
    assert (first.ports, other.ports) == ([9000, 9001], [9000, 9001])


def test_the_failure_and_its_exit_code_reach_every_node(lead: Nodes, member: Nodes) -> None:
    first, other = both(lead, member)
    first.link.fail(DEAD)
    until(lambda: len(other.orders) == 2, first, other)
    other.link.ended()
    first.link.ended()
    until(lambda: len(other.orders) == 3, first, other)
    assert first.orders == other.orders == [Start(0), Stop(DEAD), Finish(DEAD)]


def test_a_member_that_goes_ends_the_job(lead: Nodes, member: Nodes) -> None:
    first, other = both(lead, member)
    other.link.close()
    until(lambda: len(first.orders) == 2, first)
    stop = first.orders[1]
    assert isinstance(stop, Stop)
    assert "node 1 is gone" in stop.failure.message
    assert not stop.failure.restart
    first.link.ended()
    assert first.orders[2] == Finish(stop.failure)


def test_a_leader_that_goes_ends_the_job(lead: Nodes, member: Nodes) -> None:
    first, other = both(lead, member)
    first.link.close()
    until(lambda: len(other.orders) == 2, other)
    assert isinstance(other.orders[1], Stop)
    assert "node 0 is gone" in other.orders[1].failure.message
    other.link.ended()
    assert other.orders[2] == Finish(other.orders[1].failure)


def test_silence_is_taken_for_a_cut_link_on_both_sides(
    lead: Nodes, member: Nodes, clock: Clock
) -> None:
    first, other = both(lead, member)
    clock.now = PACE.silence_s + 1
    first.link.tick()
    other.link.tick()
    for node, name in ((first, "node 1"), (other, "node 0")):
        assert isinstance(node.orders[1], Stop)
        assert f"{name} is gone: its launcher was silent for 10 s" in node.orders[1].failure.message


def test_signs_of_life_keep_a_quiet_job_up(lead: Nodes, member: Nodes, clock: Clock) -> None:
    first, other = both(lead, member)
    for _ in range(30):
        clock.now += 2.0
        for _ in range(3):
            first.step()
            other.step()
    assert first.orders == other.orders == [Start(0)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token": "another"}, "GLM3SDK_JOB_TOKEN"),
        ({"token": ""}, "GLM3SDK_JOB_TOKEN"),
        ({"node": 2}, "node 2 is there already, or is none of this job's"),
        ({"nproc": 3}, "it starts 3 ranks and node 0 starts 2"),
    ],
)
def test_a_launcher_that_does_not_belong_is_refused(
    lead: Nodes, member: Nodes, options: dict[str, Any], words: str
) -> None:
    first, other = lead(), member(**options)
    until(lambda: bool(other.orders), first, other)
    assert isinstance(other.orders[0], Finish)
    assert other.orders[0].failure is not None
    assert words in other.orders[0].failure.message
    # The right one may still come.
    right = member()
    until(lambda: right.orders == [Start(0)], first, right)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        b"[]\n",
        b'{"hello": 1}\n',
        b'{"hello": {"token": "a token", "node": "1", "nproc": 2}}\n',
        b'{"hello": {"token": "a token", "node": [1], "nproc": 2}}\n',
        b"[" * 10_000 + b"\n",
        b"x" * (LONGEST + 1),
    ],
)
def test_what_else_finds_the_port_is_dropped(
    lead: Nodes, member: Nodes, port: int, data: bytes
) -> None:
    first = lead()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
        stranger.sendall(data)
        stranger.setblocking(False)

        def dropped() -> bool:
            try:
                return stranger.recv(1) == b""
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True

        until(dropped, first)
    other = member()
    until(lambda: other.orders == [Start(0)], first, other)


def test_a_stranger_that_says_nothing_is_dropped_in_time(
    lead: Nodes, port: int, clock: Clock
) -> None:
    first = lead()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
        for _ in range(3):
            first.step()
        clock.now = PACE.silence_s + 1
        first.step()
        assert stranger.recv(1) == b""
    assert first.orders == []


def test_a_members_lie_costs_it_the_connection(lead: Nodes, port: int) -> None:
    first = lead()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        hello = {"token": TOKEN, "node": 1, "nproc": 2}
        connection.sendall(json.dumps({"hello": hello}).encode() + b"\n")
        until(lambda: first.orders == [Start(0)], first)
        connection.sendall(b'{"failed": {"message": 5}, "attempt": 0}\n')
        until(lambda: len(first.orders) == 2, first)
    assert isinstance(first.orders[1], Stop)
    assert "no message of a launcher" in first.orders[1].failure.message


def test_nodes_that_do_not_come_are_named(lead: Nodes, clock: Clock) -> None:
    first = lead(members=(1, 2))
    clock.now = PACE.join_s + 1
    first.step()
    assert isinstance(first.orders[0], Finish)
    assert first.orders[0].failure is not None
    assert "no launcher of node 1, 2 came within 60 s" in first.orders[0].failure.message


def test_a_leader_that_does_not_answer_is_told_with_its_address(
    member: Nodes, port: int, clock: Clock
) -> None:
    other = member()
    assert other.orders == []
    clock.now = PACE.join_s + 1
    other.step()
    assert isinstance(other.orders[0], Finish)
    assert other.orders[0].failure is not None
    assert f"127.0.0.1 port {port} after 60 s" in other.orders[0].failure.message


def test_a_port_that_is_taken_is_a_users_mistake(lead: Nodes, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(LaunchError, match=f"port {port} of 127.0.0.1 cannot be used.*in use"):
            lead()


def test_an_address_of_another_host_is_a_users_mistake() -> None:
    with pytest.raises(LaunchError, match="as --master-addr an address of node 0"):
        LeadingLink(
            Coordination(own=0, members=(1,)),
            own=0,
            choose_port=lambda attempt: 1,
            address=("192.0.2.1", 8119),
        )
