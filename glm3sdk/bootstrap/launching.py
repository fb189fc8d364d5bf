"""Launches a job on this node, and on others through ssh."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import attrs

from glm3sdk.adapters.cluster.coordination import Coordination
from glm3sdk.adapters.cluster.launch_plan import (
    JOB_TOKEN,
    NodePart,
    PlannedProcess,
    plan_processes,
)
from glm3sdk.adapters.cluster.launcher import Launcher, Remote
from glm3sdk.adapters.cluster.leading_link import LeadingLink, listen
from glm3sdk.adapters.cluster.links import Link, Pace
from glm3sdk.adapters.cluster.member_link import MemberLink
from glm3sdk.adapters.cluster.node_part import (
    DEFAULT_PORT,
    Host,
    LaunchRequest,
    count_cards,
    find_part,
)
from glm3sdk.adapters.cluster.rank_logs import LiveOutput
from glm3sdk.adapters.cluster.rank_table_files import own_address, wait_for_rank_table
from glm3sdk.adapters.cluster.ssh import over_ssh, parse_hosts
from glm3sdk.errors import LaunchError, UserError

__all__ = ["Launch", "LaunchRequest", "PlannedProcess", "prepare_launch"]

SCHEDULER = (sys.executable, "-m", "glm3sdk.adapters.mindspore.scheduler")

_TABLE_TIMEOUT_S = 600.0
_RESOLVE_TIMEOUT_S = 60.0
# Addresses that a platform tells a container of, where it cannot see them itself.
_OWN_ADDRESSES = ("MA_CURRENT_IP", "MA_CURRENT_HOST_IP", "POD_IP", "HOST_IP")


@attrs.frozen(kw_only=True)
class Launch:
    """A launch that is ready.

    Attributes:
        part: this node's part of the job.
        command: what every rank runs.
        scheduler: what the scheduler runs; None without one.
        remotes: launchers to start on other hosts.
        environ: what processes inherit.
        token: what the job's launchers show each other.
        link_port: where launchers meet, on the master's address; 0 if they do not.
        max_restarts: how often all ranks start again after a failure.
        restart_delay_s: before the first of these.
        pace: how launchers watch each other.
        log_dir: where a file a process is written.
        grace_s: how long ranks may take to save when the job is asked to end.
    """

    part: NodePart
    command: tuple[str, ...]
    scheduler: tuple[str, ...] | None
    remotes: tuple[Remote, ...]
    environ: Mapping[str, str]
    token: str
    link_port: int
    max_restarts: int
    restart_delay_s: float
    pace: Pace
    log_dir: Path
    grace_s: float

    def processes(self, attempt: int = 0, port: int | None = None) -> tuple[PlannedProcess, ...]:
        """What this node starts, in an attempt that meets at a port."""
        return plan_processes(
            self.part,
            self.command,
            scheduler=self.scheduler,
            port=self._port(attempt) if port is None else port,
            attempt=attempt,
            cpus=len(os.sched_getaffinity(0)),
            environ=self.environ,
        )

    def run(self, *, output: TextIO, say: Callable[[str], None], signals: socket.socket) -> None:
        """Run the job to its end; nothing of it is left on this node afterwards.

        Args:
            output: where the ranks' lines are shown.
            say: shows a line of the launcher's own.
            signals: gives the numbers of signals that came, a byte each.

        Raises:
            JobFailedError: a rank failed, a node is gone, or a signal asked for the end.
            LaunchError: a port, a process or a log file cannot be had.
        """
        Launcher(
            part=self.part,
            plan=self.processes,
            link=self._link(),
            remotes=self.remotes,
            environ=self.environ,
            log_dir=self.log_dir,
            live=LiveOutput(output),
            say=say,
            signals=signals,
            grace_s=self.grace_s,
            linked=bool(self.link_port),
        ).run()

    def _link(self) -> Link:
        part = self.part
        if not part.leads and self.link_port:
            return MemberLink(
                (part.master_addr, self.link_port),
                node=part.node_rank,
                nproc=len(part.ranks),
                token=self.token,
                pace=self.pace,
            )
        if part.leads and part.master_port is not None and self.scheduler is not None:
            # Better now than when the scheduler, which says less, cannot have it.
            listen(part.master_addr, part.master_port).close()
        own = part.node_rank if part.ranks else -1
        together = bool(self.link_port) and not part.alone
        return LeadingLink(
            Coordination(
                own=own,
                members=part.members if together else (),
                max_restarts=self.max_restarts,
                delay_s=self.restart_delay_s,
            ),
            own=own,
            choose_port=self._port,
            address=(part.master_addr, self.link_port) if together else None,
            token=self.token,
            nproc=len(part.ranks) if part.ranks and part.rank_table is None else None,
            pace=self.pace,
        )

    def _port(self, attempt: int) -> int:
        """The scheduler's port: the one that was asked for, while nothing else has it."""
        asked = self.part.master_port
        if asked is not None and (attempt == 0 or _is_free(self.part.master_addr, asked)):
            return asked
        return _free_port(self.part.master_addr)


def prepare_launch(
    command: Sequence[str],
    *,
    request: LaunchRequest,
    hosts: str | None = None,
    pass_on: Sequence[str] = (),
    scheduler: Sequence[str] | None = SCHEDULER,
    link_port: int | None = None,
    max_restarts: int = 0,
    restart_delay_s: float = 3.0,
    lost_after_s: float = 20.0,
    join_timeout_s: float = 600.0,
    log_dir: Path = Path("launch_logs"),
    grace_s: float = 30.0,
    token: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Launch:
    """Find this node's part of a job and make ready to start it.

    Args:
        command: what every rank runs.
        request: what the user asks for; the rest is read from the platform.
        hosts: all hosts, this one first; the others are started through ssh.
        pass_on: names of variables that those get too.
        scheduler: what the scheduler runs; None for a job that meets without MindSpore's.
        link_port: where launchers of several nodes meet; None takes the master port + 1, 0
            leaves each node on its own.
        max_restarts: how often all ranks start again after a failure.
        restart_delay_s: before the first of these; it doubles.
        lost_after_s: after so many silent seconds another node is taken for gone.
        join_timeout_s: how long nodes wait for each other.
        log_dir: where a file a process is written.
        grace_s: how long ranks may take to save when the job is asked to end.
        token: what the job's launchers show each other; None takes GLM3SDK_JOB_TOKEN.
        environ: this process's environment; None takes it as it is.

    Raises:
        LaunchError: the job cannot be started as asked.
        InvalidRankTableError: the rank table cannot be used.
    """
    environ = dict(os.environ if environ is None else environ)
    command = _found(command, environ)
    token = token if token is not None else environ.get(JOB_TOKEN, "")
    names: tuple[str, ...] = ()
    if hosts is not None:
        names = parse_hosts(hosts)
        request = _first_of(names, request)
        token = token or secrets.token_hex(16)
    part = find_part(request, environ=environ, host=_this_host(environ))
    if link_port is None:
        link_port = 0 if part.master_port is None else part.master_port + 1
    alone = part.nnodes == 1 and not part.members and part.leads
    if max_restarts and not link_port and not alone:
        raise LaunchError(
            "--max-restarts needs the nodes' launchers to meet; leave --link-port 0 out"
        )
    launch = Launch(
        part=part,
        command=tuple(command),
        scheduler=None if scheduler is None else tuple(scheduler),
        remotes=(),
        environ=environ,
        token=token,
        link_port=link_port,
        max_restarts=max_restarts,
        restart_delay_s=restart_delay_s,
        pace=Pace(
            every_s=min(2.0, lost_after_s / 10), silence_s=lost_after_s, join_s=join_timeout_s
        ),
        log_dir=log_dir,
        grace_s=grace_s,
    )
    remotes = tuple(
        over_ssh(
            name,
            node=node,
            launcher=_arguments(launch, request, node),
            directory=str(Path.cwd()),
            environ=environ,
            names=pass_on,
            token=token,
        )
        for node, name in enumerate(names)
        if node > 0
    )
    return attrs.evolve(launch, remotes=remotes)


def _first_of(names: tuple[str, ...], request: LaunchRequest) -> LaunchRequest:
    """The request of node 0, where --hosts names every node."""
    if request.nnodes not in (None, len(names)):
        raise LaunchError(f"--nnodes is {request.nnodes} and --hosts names {len(names)} hosts")
    if request.node_rank not in (None, 0):
        raise LaunchError(
            f"--node-rank is {request.node_rank} and --hosts starts every node from node 0; leave "
            "one of them out"
        )
    return attrs.evolve(
        request,
        nnodes=len(names),
        node_rank=0,
        master_addr=request.master_addr or names[0].rpartition("@")[2],
        master_port=request.master_port or (DEFAULT_PORT if len(names) > 1 else None),
    )


def _arguments(launch: Launch, request: LaunchRequest, node: int) -> tuple[str, ...]:
    """What starts another node's launcher."""
    part = launch.part
    arguments = [sys.executable, "-m", "glm3sdk", "launch", "--from-ssh"]
    options: list[tuple[str, object]] = [
        ("--nnodes", part.nnodes),
        ("--node-rank", node),
        ("--master-addr", part.master_addr),
        ("--master-port", part.master_port),
        ("--link-port", launch.link_port),
        ("--lost-after", launch.pace.silence_s),
        ("--join-timeout", launch.pace.join_s),
        ("--grace", launch.grace_s),
        ("--log-dir", launch.log_dir),
        ("--device", part.device),
    ]
    if part.rank_table is not None:
        options.append(("--rank-table", part.rank_table))
    else:
        options.append(("--nproc", request.nproc or len(part.ranks)))
    for option, value in options:
        arguments += [option, str(value)]
    if launch.scheduler is None:
        arguments.append("--no-scheduler")
    return (*arguments, "--", *launch.command)


def _found(command: Sequence[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    if not command:
        raise LaunchError("what should every rank run? Write it behind --")
    if shutil.which(command[0], path=environ.get("PATH")) is not None:
        return tuple(command)
    if command[0] == "glm3":  # this very program, whose environment is not on PATH
        return (sys.executable, "-m", "glm3sdk", *command[1:])
    raise LaunchError(f"no command {command[0]!r} on PATH, or it cannot be run; see its spelling")


def _this_host(environ: Mapping[str, str]) -> Host:
    try:
        address = own_address()
    except UserError:
        address = "127.0.0.1"
    told = {environ[name] for name in _OWN_ADDRESSES if environ.get(name)}
    return Host(
        name=socket.gethostname(),
        address=address,
        owns=lambda other: other in told or _is_own(other),
        cards=count_cards(environ, os.listdir("/dev")),
        read_table=lambda path, wait: wait_for_rank_table(
            path, timeout_s=_TABLE_TIMEOUT_S if wait else 0
        ),
        resolve=_resolve,
        has_file=Path.is_file,
    )


def _is_own(address: str) -> bool:
    """Whether this host has an address: nothing else can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _resolve(name: str) -> str:
    """An address of a host; pods' names are known some time after the pods."""
    until = time.monotonic() + _RESOLVE_TIMEOUT_S
    while True:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError as exc:
            if time.monotonic() >= until or not _may_come(exc):
                raise LaunchError(
                    f"{name!r} leads to no address ({exc.strerror}); pass --master-addr ADDRESS"
                ) from exc
            time.sleep(1.0)
            continue
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        return str(found[0][4][0])


def _may_come(error: OSError) -> bool:
    return isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without SO_REUSEADDR: MindSpore's scheduler does not set it.
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
