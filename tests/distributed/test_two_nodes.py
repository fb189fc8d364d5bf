"""Two nodes: network namespaces of this machine, joined by a pair of virtual cards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from distributed.launched import Launched, Meeting, worker_command

GATHERING = Path(__file__).with_name("gathering_rank.py")


@attrs.frozen
class Nodes:
    names: tuple[str, str]

    def start(self, node: int, address: str, directory: Path, *rest: object) -> Launched:
        options = ["--nproc", 1, "--nnodes", 2, "--node-rank", node, "--master-addr", address]
        return Launched(
            *options,
            "--lost-after",
            3,
            "--grace",
            2,
            *rest,
            directory=directory,
            prefix=("ip", "netns", "exec", self.names[node]),
        )

    def cut(self) -> None:
        ip("-n", self.names[0], "link", "set", f"v{self.names[0]}", "down")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two nodes need network namespaces: root, and the program ip")
    # A card's name has at most 15 characters.
    one, other = (f"glm3{os.getpid() % 10**7}{letter}" for letter in "ab")
    try:
        try:
            ip("netns", "add", one)
            ip("netns", "add", other)
            ip("link", "add", f"v{one}", "type", "veth", "peer", "name", f"v{other}")
        except subprocess.CalledProcessError as exc:
            pytest.skip(f"no network namespaces here: {exc.stderr.strip()}")
        for number, name in enumerate((one, other), 1):
            ip("link", "set", f"v{name}", "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", f"v{name}")
            ip("-n", name, "addr", "add", f"fd77::{number}/64", "dev", f"v{name}", "nodad")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"v{name}", "up")
        yield Nodes((one, other))
    finally:
        for name in (one, other):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
            subprocess.run(["ip", "link", "del", f"v{name}"], check=False, capture_output=True)


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    meeting = Meeting()
    yield meeting
    meeting.close()


def cut_and_see_both_end(nodes: Nodes, jobs: list[Launched], meeting: Meeting) -> None:
    started = time.monotonic()
    nodes.cut()
    for node, job in enumerate(jobs):
        code, _, err = job.finish()
        assert code == 1, err
        assert f"node {1 - node} is gone: its launcher was silent for 3 s" in err.splitlines()[-1]
    # The promise is 60 s, with a silence of 20 s instead of 3 and 10 s for the ranks to end.
    assert time.monotonic() - started < 60 - 17 - 10
    meeting.assert_nothing_is_left()


def test_ranks_of_two_nodes_gather_and_a_cut_link_ends_both_launchers(
    nodes: Nodes, meeting: Meeting, tmp_path: Path
) -> None:
    pytest.importorskip("mindspore")
    jobs: list[Launched] = []
    try:
        for node in (0, 1):
            command = ["--", sys.executable, GATHERING, meeting.path]
            jobs.append(nodes.start(node, "10.77.0.1", tmp_path, *command))
        for rank in meeting.expect(2):
            assert json.loads(rank.hear()) == [0.5, 1.5]
        cut_and_see_both_end(nodes, jobs, meeting)
    finally:
        for job in jobs:
            job.end()


def test_launchers_meet_over_ipv6_and_a_cut_link_ends_both(
    nodes: Nodes, meeting: Meeting, tmp_path: Path
) -> None:
    jobs: list[Launched] = []
    try:
        for node in (0, 1):
            command = ["--no-scheduler", "--", *worker_command(meeting)]
            jobs.append(nodes.start(node, "fd77::1", tmp_path, *command))
        meeting.expect(2)
        cut_and_see_both_end(nodes, jobs, meeting)
    finally:
        for job in jobs:
            job.end()
