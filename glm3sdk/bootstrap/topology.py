"""Chooses how this process meets the other ranks of its job."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial

from glm3sdk.adapters.cluster.environment import placement_from_environment
from glm3sdk.adapters.cluster.single import SingleProcess
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import ParallelPlan, Place
from glm3sdk.hookspecs import RegisterTopology, hookimpl
from glm3sdk.plugins import missing, plugin_manager, registered
from glm3sdk.ports.cluster_topology import ClusterTopology

_DEVICES = ("ascend", "cpu")


@hookimpl
def glm3_register_topologies(register: RegisterTopology) -> None:
    """Register the topologies that ship with the SDK, as any plugin would."""
    for device in _DEVICES:
        register(device, partial(_of_device, device))


def load_topology(device: str, *, environ: Mapping[str, str] | None = None) -> ClusterTopology:
    """The topology that the environment speaks of; nothing is entered yet.

    Args:
        device: "ascend", "cpu", or what a plugin registered.
        environ: this process's environment; None takes it as it is.

    Returns:
        One over MindSpore where a launcher started several ranks, else one of a single process.

    Raises:
        InvalidPlacementError: the environment does not say which rank this is.
        InvalidRankTableError: the rank table that it names cannot be used.
        UnknownNameError: no such device.
        PluginError: two plugins register one name, or one that may have it cannot be used.
    """
    manager = plugin_manager([sys.modules[__name__]])
    factories = registered(manager, "glm3_register_topologies", "topology")
    if device not in factories:
        raise missing(manager, "topology", device, factories)
    topology: ClusterTopology = factories[device](
        environ=os.environ if environ is None else environ
    )
    return topology


def enter_job(
    plan: ParallelPlan, config: Glm3Config, *, device: str
) -> tuple[ClusterTopology, Place]:
    """Meet the other ranks of a plan, and take this process's place in it.

    Args:
        plan: how the model is spread over all ranks that were started.
        config: the model.
        device: as for `load_topology`.

    Raises:
        InvalidParallelPlanError: another number of ranks was started, or they cannot share
            this model. Nothing is entered then.
        RuntimeFailureError: the others did not come.
        Glm3Error: what `load_topology` raises.
    """
    topology = load_topology(device)
    plan.check(config, devices=topology.placement.rank_size)
    topology.initialize()
    return topology, plan.place(topology.placement.rank_id)


def _of_device(device: str, *, environ: Mapping[str, str]) -> ClusterTopology:
    placement = placement_from_environment(environ)
    if placement.rank_size == 1 and environ.get("MS_ROLE") is None:
        return SingleProcess(device_id=placement.device_id)
    from glm3sdk.adapters.mindspore import profiles
    from glm3sdk.adapters.mindspore.cluster import MindSporeCluster

    profile = profiles.ASCEND if device == "ascend" else profiles.CPU
    return MindSporeCluster(placement=placement, profile=profile)
