"""Several processes against one: the same losses, weights, state and texts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from distributed.launched import Launched
from distributed.parallel_cases import (
    CASES,
    CONFIG,
    DECODED,
    MIDDLE,
    STEPS,
    TRAINED,
    WEIGHTS,
    WHOLE,
    ArrayReader,
    case_name,
    chat,
    decode,
    evaluate,
    save_arrays,
    state,
    train,
)

from glm3sdk.domain.parallel import ParallelPlan, Place
from glm3sdk.domain.tensor_shares import TensorShares

pytest.importorskip("mindspore")

from glm3sdk.adapters.mindspore.profiles import CPU
from glm3sdk.adapters.mindspore.runtime import MindSporeRuntime

PROGRAM = Path(__file__).with_name("parallel_program.py")
TESTS = PROGRAM.parents[1]
STARTED_S = 240.0
# The first test waits for all ranks; the others look at what they wrote.
pytestmark = pytest.mark.timeout(2 * STARTED_S + 60)
LOSS_TOLERANCE = 1e-4
WEIGHT_TOLERANCE = 1e-5

Found = dict[str, np.ndarray]


def _runtime() -> MindSporeRuntime:
    return MindSporeRuntime(config=CONFIG, checkpoint=ArrayReader(WEIGHTS), profile=CPU)


def _train(kind: str) -> Found:
    runtime = _runtime()
    session = runtime.start_training(plan=TRAINED[kind])
    found = {"before": evaluate(session, Place(), kind)}
    first = train(session, Place(), kind, range(MIDDLE))
    found |= {f"middle/{name}": value for name, value in state(session).items()}
    last = train(session, Place(), kind, range(MIDDLE, STEPS))
    found |= {"metrics": np.concatenate([first, last]), "resumed": last}
    found["after"] = evaluate(session, Place(), kind)
    found |= {f"state/{name}": value for name, value in state(session).items()}
    session.close()
    runtime.close()
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, Found]:
    """What one process finds, by what it trains."""
    return {kind: _train(kind) for kind in TRAINED}


@pytest.fixture(scope="module")
def decoded() -> Found:
    runtime = _runtime()
    session = runtime.start_decode(slots=2, max_seq_length=32)
    found = decode(session)
    session.close()
    runtime.close()
    return found


@pytest.fixture(scope="module")
def together(
    alone: dict[str, Found], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[Found]]:
    """What each rank finds, by the number of processes."""
    found = {}
    for size in CASES:
        folder = tmp_path_factory.mktemp(f"ranks{size}")
        for kind, arrays in alone.items():
            middle = {n.removeprefix("middle/"): v for n, v in arrays.items() if "middle/" in n}
            save_arrays(folder / f"{kind}.npz", middle)
        job = Launched(
            *("--nproc", size, "--", sys.executable, PROGRAM, folder),
            directory=folder,
            environ={"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
        )
        try:
            code, out, err = job.finish(timeout_s=STARTED_S)
        finally:
            job.end()
        assert code == 0, out + err
        found[size] = [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(size)]
    return found


EVERY = [(plan, kind) for cases in CASES.values() for plan, kind in cases]
every_case = pytest.mark.parametrize(
    ("plan", "kind"), EVERY, ids=[case_name(plan, kind) for plan, kind in EVERY]
)


def of_case(together: dict[int, list[Found]], plan: ParallelPlan, kind: str) -> list[Found]:
    prefix = f"{case_name(plan, kind)}/"
    return [
        {name.removeprefix(prefix): value for name, value in rank.items() if prefix in name}
        for rank in together[plan.ranks]
    ]


@every_case
def test_losses_norms_and_evaluation_are_those_of_one_process(
    together: dict[int, list[Found]], alone: dict[str, Found], plan: ParallelPlan, kind: str
) -> None:
    first, *others = of_case(together, plan, kind)
    for name in ("before", "metrics", "after"):
        np.testing.assert_allclose(first[name], alone[kind][name], rtol=LOSS_TOLERANCE)
        for other in others:  # every rank says the same, to the last bit
            np.testing.assert_array_equal(other[name], first[name])
    losses = first["metrics"][:, 0]
    assert losses[-2] < losses[0] - 0.005, "there must be something to learn"


@every_case
def test_the_ranks_parts_make_up_the_weights_and_the_optimizers_state_of_one_process(
    together: dict[int, list[Found]], alone: dict[str, Found], plan: ParallelPlan, kind: str
) -> None:
    ranks = of_case(together, plan, kind)
    shares = TensorShares(config=CONFIG, plan=plan, lora=TRAINED[kind].lora)
    expected = {n.removeprefix("state/"): v for n, v in alone[kind].items() if "state/" in n}
    assert {name.removeprefix("state/") for name in ranks[0] if "state/" in name} == set(expected)
    for name, value in expected.items():
        whole = np.full(shares.full_shape(name), np.nan, np.float32)
        for rank, found in enumerate(ranks):
            region = shares.stored(name, plan.place(rank))
            part = found[f"state/{name}"]
            # Replicas do not drift apart.
            assert np.isnan(whole[region]).all() or (whole[region] == part).all(), name
            whole[region] = part
        np.testing.assert_allclose(whole, value, atol=WEIGHT_TOLERANCE, err_msg=name)


@every_case
def test_a_run_goes_on_from_the_checkpoint_of_another_plan(
    together: dict[int, list[Found]], alone: dict[str, Found], plan: ParallelPlan, kind: str
) -> None:
    for found in of_case(together, plan, kind):
        np.testing.assert_allclose(
            found["resumed"], alone[kind]["resumed"], rtol=LOSS_TOLERANCE, atol=0
        )


@every_case
def test_a_rank_reads_its_share_of_the_weights_alone(
    together: dict[int, list[Found]], plan: ParallelPlan, kind: str
) -> None:
    shares = TensorShares(config=CONFIG, plan=plan)
    for rank, found in enumerate(of_case(together, plan, kind)):
        items = [np.prod(shares.share(name, plan.place(rank)).shape) for name in WEIGHTS]
        assert found["read"] == 4 * sum(items)


FULL = [(plan, kind) for plan, kind in EVERY if kind in WHOLE]


@pytest.mark.parametrize(("plan", "kind"), FULL, ids=[case_name(*case) for case in FULL])
def test_weights_that_are_no_numbers_on_one_rank_stop_the_step_on_all(
    together: dict[int, list[Found]], plan: ParallelPlan, kind: str
) -> None:
    for found in of_case(together, plan, kind):
        assert found["overflow"].all()


SPLIT = [(plan, kind) for plan, kind in FULL if (plan.data, plan.tensor) in DECODED]


@pytest.mark.parametrize(("plan", "kind"), SPLIT, ids=[case_name(*case) for case in SPLIT])
def test_every_rank_decodes_the_tokens_of_one_process(
    together: dict[int, list[Found]], decoded: Found, plan: ParallelPlan, kind: str
) -> None:
    first, *others = of_case(together, plan, kind)
    np.testing.assert_array_equal(first["tokens"], decoded["tokens"])
    # float32 logits of size 4, whose sums come in another order.
    np.testing.assert_allclose(first["logits"], decoded["logits"], atol=1e-5)
    for other in others:
        np.testing.assert_array_equal(other["logits"], first["logits"])


@pytest.mark.parametrize(("plan", "kind"), SPLIT, ids=[case_name(*case) for case in SPLIT])
def test_ranks_that_are_given_different_tokens_say_so_and_decode_nothing(
    together: dict[int, list[Found]], plan: ParallelPlan, kind: str
) -> None:
    for found in of_case(together, plan, kind):
        assert found["disagreement"].all()


def test_a_service_of_two_ranks_gives_the_replies_of_one_process(
    together: dict[int, list[Found]],
) -> None:
    expected = chat()
    assert all(expected)
    for found in together[2]:
        np.testing.assert_array_equal(found["replies"], expected)


def test_moments_are_shared_out_where_the_plan_says_so(together: dict[int, list[Found]]) -> None:
    for plan, kind in FULL:
        found = of_case(together, plan, kind)[0]
        held = sum(v.size for n, v in found.items() if n.startswith("state/first_moment."))
        whole = sum(w.size for w in WEIGHTS.values())
        share = plan.tensor * (plan.data if plan.optimizer_shard else 1)
        # Norms stay whole, and are 0.3% here.
        assert held == pytest.approx(whole / share, rel=0.02)
