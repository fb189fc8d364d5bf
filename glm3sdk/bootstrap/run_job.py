"""The ranks of a finetune run, from its configuration and from what started this process."""

from __future__ import annotations

import os

import attrs

from glm3sdk.adapters.cluster.environment import placement_from_environment
from glm3sdk.bootstrap.runtimes import DEFAULT_RUNTIME, shared_profile
from glm3sdk.bootstrap.topology import load_topology
from glm3sdk.config.schema import RunConfig
from glm3sdk.domain.lora import Lora
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan, Place
from glm3sdk.domain.tensor_shares import TensorShares
from glm3sdk.errors import InvalidParallelPlanError
from glm3sdk.ports.cluster_topology import ClusterTopology
from glm3sdk.services.run_ranks import ALONE, RunRanks


@attrs.frozen(eq=False)
class RunJob:
    """The job that a run is trained by; `run_job` makes it.

    Attributes:
        topology: how the ranks meet; not entered yet. None for a process that nobody launched.
        place: this process's.
        ranks: what they agree on, once the job is entered.
    """

    topology: ClusterTopology | None
    place: Place
    ranks: RunRanks

    def enter(self) -> None:
        """Meet the other ranks.

        Raises:
            RuntimeFailureError: they did not come.
        """
        if self.topology is not None:
            self.topology.initialize()

    def leave(self) -> None:
        """Leave the other ranks; a process has one job."""
        if self.topology is not None:
            self.topology.finalize()


def leads_job() -> bool:
    """Whether this process is the first of those that were started together, or the only one.

    Raises:
        InvalidPlacementError: the environment does not say which rank it is.
    """
    return placement_from_environment(os.environ).rank_id == 0


def run_job(config: RunConfig, model: Glm3Config, lora: Lora | None) -> RunJob:
    """The job that a configuration asks for, if this process was started for it.

    Args:
        config: of the run.
        model: that is trained.
        lora: the adapter that is trained, if one is.

    Raises:
        InvalidParallelPlanError: another number of ranks was started, or they cannot share the
            model.
        InvalidPlacementError: the environment does not say which rank this is.
        UnsupportedOptionError: the runtime holds a model in one process.
    """
    plan = ParallelPlan(**attrs.asdict(config.parallel))
    started = placement_from_environment(os.environ).rank_size
    if started == 1 < plan.ranks:
        raise InvalidParallelPlanError(
            f"parallel.data={plan.data} x parallel.tensor={plan.tensor} is a run of {plan.ranks} "
            f"ranks, and this process is alone; start it with `glm3 launch --nproc {plan.ranks} "
            "-- glm3 finetune CONFIG`"
        )
    plan.check(model, devices=started)
    if started == 1 and os.environ.get("MS_ROLE") is None:
        return RunJob(None, plan.place(0), ALONE)
    # A job of one is entered too: its scheduler would wait for it.
    profile = shared_profile(config.runtime.name or DEFAULT_RUNTIME)
    topology = load_topology(profile.device_target.lower())
    shares = TensorShares(config=model, plan=plan, lora=lora)
    ranks = RunRanks(topology=topology, spread=shares.strategy, data=plan.data)
    return RunJob(topology, plan.place(topology.placement.rank_id), ranks)
