"""The launcher with ranks that do what a test says; no MindSpore."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed.launched import SIGNALS, Launched, Meeting, worker_command

Launch = Callable[..., Launched]


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    meeting = Meeting()
    yield meeting
    meeting.close()


@pytest.fixture
def launch(tmp_path: Path, meeting: Meeting) -> Iterator[Launch]:
    launched: list[Launched] = []

    def start(*options: object, nproc: int = 2, **more: object) -> Launched:
        command = more.pop("command", None) or worker_command(meeting)
        arguments = ["--nproc", nproc, "--no-scheduler", *options, "--", *command]  # type: ignore[misc]
        launched.append(Launched(*arguments, directory=tmp_path, **more))  # type: ignore[arg-type]
        return launched[-1]

    yield start
    for one in launched:
        one.end()


def free_port() -> int:
    """Of two that follow each other, the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_all_ranks_that_end_well_end_the_job_well(
    launch: Launch, meeting: Meeting, tmp_path: Path
) -> None:
    job = launch(nproc=3)
    ranks = meeting.expect(3)
    assert [rank.rank_id for rank in ranks] == [0, 1, 2]
    for rank in ranks:
        rank.say(f"print loss of {rank.rank_id}")
    for rank in ranks:
        rank.say("exit 0")
    code, out, err = job.finish()
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == [f"[rank {n}] loss of {n}" for n in range(3)]
    assert (tmp_path / "launch_logs" / "rank_2.log").read_text() == "loss of 2\n"
    # The child and the daemon that each worker left behind are gone too.
    meeting.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("order", "code", "words"),
    [
        ("exit 7", 7, "ended with exit code 7"),
        ("kill 9", 137, "ended with SIGKILL (out of memory?)"),
        ("kill 6", 134, "ended with SIGABRT"),
    ],
)
def test_a_dead_rank_ends_the_job_with_its_code_and_last_lines(
    launch: Launch, meeting: Meeting, order: str, code: int, words: str
) -> None:
    job = launch("--log-dir", "logs", nproc=3)
    ranks = meeting.expect(3)
    ranks[1].say("print the reason")
    ranks[1].say(order)
    found, _, err = job.finish()
    assert found == code
    lines = err.splitlines()
    assert "glm3 launch:   the reason" in lines
    assert lines[-1].startswith(f"glm3: error: rank 1 on node 0 ({socket.gethostname()}), card 1,")
    assert words in lines[-1]
    assert "logs/rank_1.log" in lines[-1]
    meeting.assert_nothing_is_left()


def test_ranks_that_do_not_obey_are_killed_when_their_time_is_over(
    launch: Launch, meeting: Meeting
) -> None:
    job = launch("--grace", "0.5")
    ranks = meeting.expect(2)
    ranks[0].say("ignore")
    assert ranks[0].hear() == "ignoring"
    started = time.monotonic()
    ranks[1].say("exit 3")
    assert job.finish()[0] == 3
    # The promise is 15 s, of which a failed job leaves its ranks 10 s unless --grace says less.
    assert time.monotonic() - started < 9
    meeting.assert_nothing_is_left()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_lets_ranks_save_and_gives_its_exit_code(
    launch: Launch, meeting: Meeting, number: signal.Signals
) -> None:
    job = launch()
    ranks = meeting.expect(2)
    for rank in ranks:
        rank.say("save")
        assert rank.hear() == "ready"
    job.process.send_signal(number)
    for rank in ranks:
        assert rank.hear() == "asked"
        rank.say("saved")
    code, _, err = job.finish()
    assert code == SIGNALS[number]
    assert f"stopped by {number.name}" in err.splitlines()[-1]
    assert "Traceback" not in err
    meeting.assert_nothing_is_left()


def test_a_second_ctrl_c_ends_ranks_at_once(launch: Launch, meeting: Meeting) -> None:
    job = launch("--grace", "3600")
    ranks = meeting.expect(2)
    for rank in ranks:
        rank.say("save")
        assert rank.hear() == "ready"
    job.process.send_signal(signal.SIGINT)
    for rank in ranks:
        assert rank.hear() == "asked"
    job.process.send_signal(signal.SIGINT)
    assert job.finish()[0] == 130
    meeting.assert_nothing_is_left()


def test_a_killed_launcher_leaves_nothing_behind(launch: Launch, meeting: Meeting) -> None:
    job = launch(nproc=3)
    meeting.expect(3)
    job.process.kill()
    meeting.assert_nothing_is_left()


def test_a_killed_keeper_is_a_dead_rank_and_leaves_its_group_to_nobody(
    launch: Launch, meeting: Meeting
) -> None:
    job = launch()
    ranks = meeting.expect(2)
    os.kill(ranks[1].keeper, signal.SIGKILL)
    code, _, err = job.finish()
    assert code == 137
    assert "rank 1" in err.splitlines()[-1]
    daemon = ranks[1].pids.pop()
    meeting.assert_nothing_is_left()
    os.kill(daemon, signal.SIGKILL)  # only a keeper could have adopted it


def test_a_failed_job_starts_again_until_its_restarts_are_used_up(
    launch: Launch, meeting: Meeting, tmp_path: Path
) -> None:
    job = launch("--max-restarts", "2", "--restart-delay", "0")
    for attempt in range(3):
        ranks = meeting.expect(2)
        assert [rank.restart for rank in ranks] == [attempt] * 2
        ranks[0].say(f"print attempt {attempt}")
        ranks[1].say(f"exit {attempt + 3}")
    code, _, err = job.finish()
    assert code == 5
    assert "exit code 3" in err
    assert "start 3 of all ranks" in err
    meeting.assert_nothing_is_left()


def test_what_a_rank_refuses_is_not_tried_again(launch: Launch, meeting: Meeting) -> None:
    job = launch("--max-restarts", "2", "--restart-delay", "0")
    meeting.expect(2)[1].say("exit 2")
    code, _, err = job.finish()
    assert code == 2
    assert "start 2 of all ranks" not in err
    meeting.assert_nothing_is_left()


def test_a_job_that_succeeds_after_a_restart_has_succeeded(
    launch: Launch, meeting: Meeting
) -> None:
    job = launch("--max-restarts", "1", "--restart-delay", "0")
    meeting.expect(2)[0].say("kill 9")
    for rank in meeting.expect(2):
        rank.say("exit 0")
    assert job.finish()[0] == 0
    meeting.assert_nothing_is_left()


def test_a_signal_while_the_job_waits_for_its_restart_ends_it(
    launch: Launch, meeting: Meeting
) -> None:
    job = launch("--max-restarts", "1", "--restart-delay", "3600")
    ranks = meeting.expect(2)
    ranks[0].say("exit 1")
    meeting.assert_nothing_is_left()
    job.process.terminate()
    assert job.finish()[0] == 143


def test_output_of_ranks_that_nobody_reads_ends_nothing(
    launch: Launch, meeting: Meeting, tmp_path: Path
) -> None:
    job = launch()
    assert job.process.stdout is not None
    job.process.stdout.close()
    job.process.stdout = None
    ranks = meeting.expect(2)
    for rank in ranks:
        for line in ("one", "two"):
            rank.say(f"print {line}")
        rank.say("exit 0")
    assert job.finish()[0] == 0
    assert (tmp_path / "launch_logs" / "rank_1.log").read_text() == "one\ntwo\n"


@pytest.mark.parametrize(
    ("options", "command", "words"),
    [
        ((), ["no-such-program"], "no command 'no-such-program' on PATH"),
        (("--nproc", "0"), ["true"], "--nproc is 0"),
        (("--nnodes", "2", "--node-rank", "2", "--master-addr", "127.0.0.1"), ["true"], "0 to 1"),
        (("--device", "ascend"), ["true"], "2 ranks need 2 cards"),
        (("--hosts", "localhost,-oProxyCommand=x"), ["true"], "is no host's name"),
        (("--hosts", "localhost,localhost"), ["true"], "names a host twice"),
        (("--hosts", "a,b", "--node-rank", "1"), ["true"], "leave one of them out"),
        (("--rank-table", "none.json"), ["true"], "none.json: cannot be read"),
        (("--hosts", "localhost,b", "--env", "NOT_SET_HERE"), ["true"], "--env NOT_SET_HERE"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    launch: Launch, options: tuple[str, ...], command: list[str], words: str
) -> None:
    code, out, err = launch(*options, command=command).finish()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err


def test_a_port_in_use_is_told_before_anything_starts(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ("--nnodes", 2, "--node-rank", 0, "--master-addr", "127.0.0.1")
        job = launch(*options, "--link-port", port, "--master-port", "1")
        code, _, err = job.finish()
    assert code == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in err


def test_two_launchers_of_one_machine_make_one_job(launch: Launch, meeting: Meeting) -> None:
    port = free_port()
    where = ("--nnodes", 2, "--master-addr", "127.0.0.1", "--link-port", port)
    jobs = [launch(*where, "--node-rank", node, "--log-dir", f"logs{node}") for node in (1, 0)]
    ranks = meeting.expect(4)
    assert [rank.rank_id for rank in ranks] == [0, 1, 2, 3]
    ranks[2].say("print last words")
    ranks[2].say("exit 5")
    for job in jobs:
        code, _, err = job.finish()
        assert code == 5
        assert "glm3 launch:   last words" in err.splitlines()
        assert "rank 2 on node 1" in err.splitlines()[-1]
    meeting.assert_nothing_is_left()


def test_nodes_start_again_together_and_end_well_together(launch: Launch, meeting: Meeting) -> None:
    where = ("--nnodes", 2, "--master-addr", "127.0.0.1", "--link-port", free_port())
    more = ("--max-restarts", 1, "--restart-delay", 0)
    jobs = [launch(*where, *more, "--node-rank", node, nproc=1) for node in (0, 1)]
    meeting.expect(2)[1].say("kill 9")
    ranks = meeting.expect(2)
    assert [rank.restart for rank in ranks] == [1, 1]
    for rank in ranks:
        rank.say("exit 0")
    assert [job.finish()[0] for job in jobs] == [0, 0]
    meeting.assert_nothing_is_left()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_launcher_ends_the_other_nodes(
    launch: Launch, meeting: Meeting, victim: int
) -> None:
    where = ("--nnodes", 2, "--master-addr", "127.0.0.1", "--link-port", free_port())
    jobs = [launch(*where, "--node-rank", node, nproc=1) for node in (0, 1)]
    meeting.expect(2)
    jobs[victim].process.kill()
    code, _, err = jobs[1 - victim].finish()
    assert code == 1
    assert f"node {victim} is gone" in err.splitlines()[-1]
    meeting.assert_nothing_is_left()


def test_a_launcher_that_stands_still_is_gone_after_its_silence(
    launch: Launch, meeting: Meeting
) -> None:
    where = ("--nnodes", 2, "--master-addr", "127.0.0.1", "--link-port", free_port())
    jobs = [launch(*where, "--lost-after", 3, "--node-rank", node, nproc=1) for node in (0, 1)]
    meeting.expect(2)
    jobs[1].process.send_signal(signal.SIGSTOP)
    code, _, err = jobs[0].finish()
    assert code == 1
    assert "was silent for 3 s" in err.splitlines()[-1]
    jobs[1].process.send_signal(signal.SIGCONT)
    assert jobs[1].finish()[0] == 1
    meeting.assert_nothing_is_left()


@pytest.fixture
def fake_ssh(tmp_path: Path) -> dict[str, str]:
    """An ssh that notes its arguments and runs the command here, as sshd would: by a shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ssh"
    program.write_text(
        f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/ssh_arguments\n"
        'for last; do :; done\nexec /bin/sh -c "$last"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "A_SECRET": "hunter2", "MINE": "it's mine"}


def test_other_hosts_are_started_through_ssh_and_end_with_this_one(
    launch: Launch, meeting: Meeting, tmp_path: Path, fake_ssh: dict[str, str]
) -> None:
    options = ("--hosts", "127.0.0.1,user@b", "--env", "MINE", "--link-port", free_port())
    job = launch(*options, nproc=1, environ=fake_ssh)
    ranks = meeting.expect(2)
    arguments = (tmp_path / "ssh_arguments").read_text().splitlines()
    assert arguments[:5] == ["-o", "BatchMode=yes", "-T", "--", "user@b"]
    assert "MINE=it" in arguments[5]
    assert "hunter2" not in "".join(arguments)
    assert "TOKEN" not in "".join(arguments)
    ranks[1].say("print from b")
    for rank in ranks:
        rank.say("exit 0")
    code, out, _ = job.finish()
    assert code == 0
    assert "[rank 1] from b" in out.splitlines()
    meeting.assert_nothing_is_left()


def test_a_killed_launcher_ends_what_it_started_through_ssh(
    launch: Launch, meeting: Meeting, fake_ssh: dict[str, str]
) -> None:
    options = ("--hosts", "127.0.0.1,b", "--link-port", free_port())
    job = launch(*options, nproc=1, environ=fake_ssh)
    meeting.expect(2)
    job.process.kill()
    meeting.assert_nothing_is_left()


def test_an_ssh_that_fails_is_told_with_its_words(
    launch: Launch, tmp_path: Path, fake_ssh: dict[str, str]
) -> None:
    program = tmp_path / "bin" / "ssh"
    program.write_text("#!/bin/sh\necho 'Permission denied (publickey).' >&2\nexit 255\n")
    options = ("--hosts", "127.0.0.1,b", "--link-port", free_port())
    code, out, err = launch(*options, nproc=1, environ=fake_ssh).finish()
    assert code == 255
    assert "Permission denied (publickey)." in out
    assert "the launcher on host b ended with exit code 255" in err


def test_a_dry_run_prints_what_would_run_and_no_secret(
    launch: Launch, tmp_path: Path, fake_ssh: dict[str, str]
) -> None:
    options = ("--dry-run", "--hosts", "127.0.0.1,b")
    command = ["glm3", "finetune", "my run.yaml"]
    code, out, _ = launch(*options, command=command, environ=fake_ssh).finish()
    assert code == 0
    assert "# rank 1\n" in out
    assert "finetune 'my run.yaml'" in out
    assert "RANK_ID=1 RANK_SIZE=4" in out
    assert "# host b\nssh -o BatchMode=yes" in out
    assert "hunter2" not in out
    code, out, _ = launch(*options, "--json", command=command, environ=fake_ssh).finish()
    planned = json.loads(out)
    assert [process["name"] for process in planned["processes"]] == ["rank 0", "rank 1"]
    assert planned["hosts"][0]["host"] == "b"
    assert not (tmp_path / "launch_logs").exists()


def test_what_mindcluster_injects_is_enough(launch: Launch, tmp_path: Path) -> None:
    environ = {
        "MS_SCHED_HOST": "127.0.0.1",
        "MS_SCHED_PORT": "2222",
        "MS_WORKER_NUM": "2",
        "MS_LOCAL_WORKER": "1",
        "MS_NODE_RANK": "1",
        "MS_ROLE": "MS_WORKER",
        "NPU_POD": "true",
    }
    command = ["--dry-run", "--json", "--device", "cpu", "--", "glm3", "finetune", "run.yaml"]
    job = Launched(*command, directory=tmp_path, environ=environ)
    code, out, err = job.finish()
    assert (code, err) == (0, "")
    [process] = json.loads(out)["processes"]
    assert process["environment"]["RANK_ID"] == "1"
    assert process["environment"]["MS_SCHED_PORT"] == "2222"
    assert process["command"][-2:] == ["finetune", "run.yaml"]


def test_a_rank_table_alone_starts_its_host(
    launch: Launch, meeting: Meeting, tmp_path: Path
) -> None:
    devices = [
        {"device_id": str(3 - n), "device_ip": f"192.1.1.{n}", "rank_id": str(n)} for n in range(2)
    ]
    table = {
        "version": "1.0",
        "server_count": "1",
        "server_list": [{"server_id": "127.0.0.1", "device": devices}],
        "status": "completed",
    }
    (tmp_path / "hccl.json").write_text(json.dumps(table))
    show = "import os; print(*(os.environ[n] for n in ('RANK_TABLE_FILE', 'RANK_ID', 'DEVICE_ID')))"
    command = ["--rank-table", "hccl.json", "--no-scheduler", "--", sys.executable, "-c", show]
    code, out, err = Launched(*command, directory=tmp_path).finish()
    assert (code, err) == (0, "")
    path = tmp_path / "hccl.json"
    assert sorted(out.splitlines()) == [f"[rank 0] {path} 0 3", f"[rank 1] {path} 1 2"]


def test_a_node_that_only_schedules_leads_the_others(
    launch: Launch, meeting: Meeting, tmp_path: Path
) -> None:
    link_port = free_port()
    pod = {
        "MS_SCHED_HOST": "127.0.0.1",
        "MS_SCHED_PORT": "2222",
        "MS_WORKER_NUM": "2",
        "MS_LOCAL_WORKER": "1",
    }
    roles = [("MS_SCHED", "0", "false"), ("MS_WORKER", "0", "true"), ("MS_WORKER", "1", "true")]
    jobs = []
    try:
        for role, node_rank, cards in roles:
            environ = pod | {"MS_ROLE": role, "MS_NODE_RANK": node_rank, "NPU_POD": cards}
            options = ["--no-scheduler", "--device", "cpu", "--link-port", link_port, "--"]
            jobs.append(
                Launched(*options, *worker_command(meeting), directory=tmp_path, environ=environ)
            )
        for rank in meeting.expect(2):
            rank.say("exit 0")
        assert [job.finish()[0] for job in jobs] == [0, 0, 0]
    finally:
        for job in jobs:
            job.end()
    meeting.assert_nothing_is_left()
