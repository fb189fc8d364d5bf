from __future__ import annotations

from glm3sdk.adapters.cluster.coordination import Coordination, Failure, Finish, Start, Stop

DEAD = Failure("rank 5 died", 7, ("last words",), restart=True)
ASKED = Failure("stopped by SIGTERM", 143, asked=True)


def started(*, max_restarts: int = 0) -> Coordination:
    job = Coordination(own=0, members=(1, 2), max_restarts=max_restarts, delay_s=3.0)
    assert job.begin() is None
    assert job.joined(2) is None
    assert job.missing == (1,)
    assert job.joined(1) == Start(0)
    return job


def test_a_node_alone_starts_at_once_and_is_done_alone() -> None:
    job = Coordination(own=0, members=())
    assert job.begin() == Start(0)
    assert job.done(0) == Finish(None)


def test_all_nodes_must_be_done() -> None:
    job = started()
    assert job.done(1) is None
    assert job.done(0) is None
    assert job.done(2) == Finish(None)
    assert job.fail(DEAD) is None


def test_a_failure_stops_every_node_and_ends_the_job_when_none_has_ranks_left() -> None:
    job = started()
    assert job.done(2) is None
    assert job.fail(DEAD) == Stop(DEAD)
    assert job.fail(Failure("rank 6 died of it", 1, restart=True)) is None
    assert job.ended(1, 10.0) is None
    assert job.ended(2, 10.0) is None
    assert job.ended(0, 10.0) == Finish(DEAD)


def test_a_failure_starts_all_nodes_again_after_a_delay_that_doubles() -> None:
    job = started(max_restarts=2)
    for attempt, delay_s in ((1, 3.0), (2, 6.0)):
        assert job.fail(DEAD) == Stop(DEAD)
        assert [job.ended(node, 100.0) for node in (0, 1, 2)] == [None] * 3
        assert job.tick(100.0 + delay_s - 0.1) is None
        assert job.tick(100.0 + delay_s) == Start(attempt)
        # What was done before counts no more.
        assert job.done(1) is None
    assert job.fail(DEAD) == Stop(DEAD)
    assert [job.ended(node, 100.0) for node in (0, 1, 2)] == [None, None, Finish(DEAD)]


def test_a_lost_node_ends_the_job_without_a_restart() -> None:
    job = started(max_restarts=5)
    gone = Failure("node 1 is gone")
    assert job.lost(1, gone) == Stop(gone)
    assert job.ended(0, 1.0) is None
    assert job.ended(2, 1.0) == Finish(gone)


def test_a_node_lost_while_the_job_stops_keeps_the_cause_and_prevents_the_restart() -> None:
    job = started(max_restarts=5)
    job.fail(DEAD)
    assert job.ended(0, 1.0) is None
    assert job.ended(2, 1.0) is None
    order = job.lost(1, Failure("node 1 is gone"))
    assert isinstance(order, Finish)
    assert order.failure is not None
    assert order.failure.message == "rank 5 died"


def test_a_wish_to_end_is_never_answered_with_a_restart() -> None:
    job = started(max_restarts=5)
    assert job.fail(DEAD) == Stop(DEAD)
    assert job.fail(ASKED) is None
    assert [job.ended(node, 1.0) for node in (0, 1, 2)] == [None, None, Finish(ASKED)]
    job = started(max_restarts=5)
    job.fail(DEAD)
    assert [job.ended(node, 1.0) for node in (0, 1, 2)] == [None] * 3
    assert job.fail(ASKED) == Finish(ASKED)
    assert job.tick(1000.0) is None


def test_before_all_have_joined_a_failure_ends_the_job_at_once() -> None:
    job = Coordination(own=0, members=(1,))
    assert job.begin() is None
    assert job.fail(ASKED) == Finish(ASKED)
    assert job.joined(1) is None
