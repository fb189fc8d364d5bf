"""Launchers on other hosts, started through ssh.

The job's token goes over the connection and is in no command line. The remote launcher ends
when its standard input does: that is, when this one is gone, however it ended.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from glm3sdk.adapters.cluster.launcher import Remote
from glm3sdk.errors import LaunchError

# What a launcher needs to run as it runs here. Anything else, secrets above all, only by name.
_PASSED_ON = (
    "ASCEND_HOME_PATH",
    "ASCEND_OPP_PATH",
    "ASCEND_TOOLKIT_HOME",
    "GLOG_v",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONPATH",
)
_HOST = re.compile(r"[A-Za-z0-9_.@:\[\]][A-Za-z0-9_.@:\[\]-]*")


def parse_hosts(text: str) -> tuple[str, ...]:
    """Hosts such as "node-a,user@node-b"; the first one is this host.

    Raises:
        LaunchError: one of them is no host's name, or is there twice.
    """
    hosts = tuple(host.strip() for host in text.split(","))
    for host in hosts:
        # ssh takes a name that begins with "-" for an option.
        if not _HOST.fullmatch(host):
            raise LaunchError(
                f"--hosts: {host!r} is no host's name; write a,b with this host first"
            )
    if len(set(hosts)) < len(hosts):
        raise LaunchError(f"--hosts {text!r} names a host twice; start one launcher a host")
    return hosts


def over_ssh(
    host: str,
    *,
    node: int,
    launcher: Sequence[str],
    directory: str,
    environ: Mapping[str, str],
    names: Sequence[str],
    token: str,
) -> Remote:
    """The launcher of another host.

    Args:
        host: as ssh knows it.
        node: its number.
        launcher: what starts it there.
        directory: where, the same as here.
        environ: this launcher's environment.
        names: variables to pass on, beside those that programs are found by.
        token: of the job.

    Raises:
        LaunchError: a variable that should be passed on is not set.
    """
    for name in names:
        if name not in environ:
            raise LaunchError(f"--env {name}: it is not set here; set it, or leave the option out")
    variables = [
        f"{name}={environ[name]}"
        for name in dict.fromkeys((*_PASSED_ON, *names))
        if name in environ
    ]
    command = f"cd {shlex.quote(directory)} && exec {shlex.join(['env', *variables, *launcher])}"
    return Remote(
        node=node,
        host=host,
        command=("ssh", "-o", "BatchMode=yes", "-T", "--", host, command),
        first_input=f"{token}\n".encode(),
    )
