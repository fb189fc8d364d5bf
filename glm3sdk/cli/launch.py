"""`glm3 launch`."""

from __future__ import annotations

import json
import queue
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from glm3sdk.cli.failures import Failure
from glm3sdk.errors import JobFailedError

if TYPE_CHECKING:
    from glm3sdk.bootstrap.launching import Launch

# Python notices a signal that comes just before a wait only when the wait ends.
_WAIT_S = 0.5


class JobFailure(Failure):
    """A job that failed; the exit code is the failed worker's."""

    def __init__(self, error: JobFailedError) -> None:
        super().__init__(error)
        self._code = error.exit_code

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # click reads it, of any instance
        """What the process ends with."""
        return self._code


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--nproc",
    type=click.IntRange(max=4096),
    metavar="N",
    help="Ranks on this node.  [default: its cards]",
)
@click.option("--nnodes", type=int, metavar="N", help="Nodes of the job.  [default: 1]")
@click.option("--node-rank", type=int, metavar="I", help="Number of this node, from 0.")
@click.option("--master-addr", metavar="A", help="Address of node 0.")
@click.option(
    "--master-port", type=int, metavar="P", help="Port of the scheduler there.  [default: 8118]"
)
@click.option(
    "--rank-table",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="HCCL rank table; tells nodes, ranks and cards.",
)
@click.option("--server-id", metavar="ID", help="This host's entry in the rank table.")
@click.option(
    "--device", type=click.Choice(["ascend", "cpu"]), help="[default: ascend where cards are]"
)
@click.option("--hosts", metavar="A,B", help="All hosts, this one first; ssh starts the others.")
@click.option(
    "--env", "pass_on", multiple=True, metavar="NAME", help="Pass NAME on to them; repeatable."
)
@click.option(
    "--log-dir",
    type=click.Path(path_type=Path),
    default="launch_logs",
    show_default=True,
    help="Directory of a log file a rank.",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="After a failure, start all ranks again so often.",
)
@click.option(
    "--restart-delay",
    type=click.FloatRange(0),
    default=3.0,
    show_default=True,
    metavar="S",
    help="Seconds before the first time; doubles.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds that ranks may take to save on Ctrl-C or SIGTERM.",
)
@click.option(
    "--lost-after",
    type=click.FloatRange(0.5),
    default=20.0,
    show_default=True,
    metavar="S",
    help="Seconds of silence after which a node is gone.",
)
@click.option(
    "--join-timeout",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    metavar="S",
    help="Seconds that nodes wait for each other.",
)
@click.option(
    "--link-port",
    type=click.IntRange(0, 65535),
    metavar="P",
    help="Where launchers meet on node 0; 0: nowhere.  [default: master port + 1]",
)
@click.option("--no-scheduler", is_flag=True, help="Start no MindSpore scheduler.")
@click.option("--dry-run", is_flag=True, help="Print what would be started, and start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print that as JSON.")
@click.option("--from-ssh", is_flag=True, hidden=True)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def launch(
    *,
    nproc: int | None,
    nnodes: int | None,
    node_rank: int | None,
    master_addr: str | None,
    master_port: int | None,
    rank_table: Path | None,
    server_id: str | None,
    device: str | None,
    hosts: str | None,
    pass_on: tuple[str, ...],
    log_dir: Path,
    max_restarts: int,
    restart_delay: float,
    grace: float,
    lost_after: float,
    join_timeout: float,
    link_port: int | None,
    no_scheduler: bool,
    dry_run: bool,
    as_json: bool,
    from_ssh: bool,
    command: tuple[str, ...],
) -> None:
    r"""Run COMMAND as every rank of a job, and end all of it when one rank fails.

    It is started once on each node. Under ModelArts and MindCluster no options are needed.
    Ctrl-C and SIGTERM let the ranks save; a second Ctrl-C ends them at once. The exit code is
    that of the rank that failed first.

    \b
    Examples:
      glm3 launch --nproc 8 -- glm3 finetune run.yaml
      glm3 launch --hosts node0,node1 --dry-run -- glm3 finetune run.yaml
    """
    from glm3sdk.bootstrap.launching import SCHEDULER, LaunchRequest, prepare_launch

    ready = prepare_launch(
        command,
        request=LaunchRequest(
            nproc=nproc,
            nnodes=nnodes,
            node_rank=node_rank,
            master_addr=master_addr,
            master_port=master_port,
            rank_table=rank_table,
            server_id=server_id,
            device=device,
        ),
        hosts=hosts,
        pass_on=pass_on,
        scheduler=None if no_scheduler else SCHEDULER,
        link_port=link_port,
        max_restarts=max_restarts,
        restart_delay_s=restart_delay,
        lost_after_s=lost_after,
        join_timeout_s=join_timeout,
        log_dir=log_dir,
        grace_s=grace,
        token=sys.stdin.readline().strip() if from_ssh else None,
    )
    if dry_run or as_json:
        _show_plan(ready, as_json=as_json)
        return
    try:
        _with_signals(
            lambda signals: ready.run(output=sys.stdout, say=_say, signals=signals),
            watch_input=from_ssh,
        )
    except JobFailedError as exc:
        raise JobFailure(exc) from exc


def _say(line: str) -> None:
    click.echo(f"glm3 launch: {line}", err=True)


def _show_plan(ready: Launch, *, as_json: bool) -> None:
    """The variables that the launcher sets: nothing of the environment, which holds secrets."""
    processes = ready.processes()
    if as_json:
        shown = [
            {
                "name": process.name,
                "environment": dict(process.variables),
                "command": list(process.command),
            }
            for process in processes
        ]
        remotes = [{"host": remote.host, "command": remote.command} for remote in ready.remotes]
        click.echo(json.dumps({"processes": shown, "hosts": remotes}, ensure_ascii=False))
        return
    for process in processes:
        variables = " ".join(
            f"{name}={shlex.quote(value)}" for name, value in sorted(process.variables.items())
        )
        click.echo(f"# {process.name}\n{variables} {shlex.join(process.command)}")
    for remote in ready.remotes:
        click.echo(f"# host {remote.host}\n{shlex.join(remote.command)}")


def _with_signals(work: Callable[[socket.socket], None], *, watch_input: bool) -> None:
    """Run work on a thread and hand it each signal that comes; the main thread gets them.

    There they would break in anywhere, and what a launcher does must not be broken off.
    """
    ours, theirs = socket.socketpair()
    outcome: Future[None] = Future()
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def run() -> None:
        try:
            work(theirs)
            outcome.set_result(None)
        except BaseException as exc:  # raised again in the main thread
            outcome.set_exception(exc)
        ended.put(None)

    def pass_on(number: int, _frame: FrameType | None = None) -> None:
        with suppress(OSError):
            ours.send(bytes([number]))

    def watch() -> None:
        sys.stdin.read()
        with suppress(OSError):
            ours.shutdown(socket.SHUT_WR)

    before = {
        number: signal.signal(number, pass_on)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    thread = threading.Thread(target=run, name="glm3-launch", daemon=True)
    if watch_input:
        threading.Thread(target=watch, name="glm3-launch-input", daemon=True).start()
    try:
        thread.start()
        while not outcome.done():
            try:
                with suppress(queue.Empty):
                    ended.get(timeout=_WAIT_S)
            except KeyboardInterrupt:
                pass_on(signal.SIGINT)
        outcome.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ours.close()
        theirs.close()
