"""The ModelRuntime on MindSpore, for any device profile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm3sdk.adapters.mindspore.context import free_unused, set_up
from glm3sdk.adapters.mindspore.executor import EXECUTOR
from glm3sdk.adapters.mindspore.failures import translated
from glm3sdk.adapters.mindspore.profiles import DeviceProfile
from glm3sdk.domain.model import Glm3Config
from glm3sdk.domain.parallel import Place
from glm3sdk.errors import ServiceClosedError
from glm3sdk.ports.checkpoint_store import CheckpointReader
from glm3sdk.ports.model_runtime import DecodeSession, RuntimeCapabilities
from glm3sdk.ports.training import TrainingPlan, TrainingSession

if TYPE_CHECKING:
    from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
    from glm3sdk.adapters.mindspore.ranks import Ranks


ALONE = Place()
"""A process that holds the whole model."""


class MindSporeRuntime:
    """A ChatGLM3 held by MindSpore in graph mode.

    Args:
        config: the model's hyper-parameters.
        checkpoint: its weights, already checked against the config.
        profile: the device and its kernels.
        dtype: what to hold the weights in; None is the profile's default.
        device_id: which card.
        max_device_memory: most memory that MindSpore may take of a card, such as "59GB";
            it means nothing on a CPU.
        place: this process among those that hold the model together, whose job it has entered;
            every one of them makes the same calls in the same order. Only its share of each
            weight is read.

    Raises:
        InvalidParallelPlanError: the model cannot be shared out like this.
        InvalidPlacementError: the job was not entered, or has other ranks.
        BackendUnavailableError: MindSpore or the device is not there.
        UnsupportedOptionError: the device does not compute in that dtype.
        InvalidCheckpointError: a tensor cannot be read.
        RuntimeFailureError: there is not enough memory, for one.
    """

    def __init__(
        self,
        *,
        config: Glm3Config,
        checkpoint: CheckpointReader,
        profile: DeviceProfile,
        dtype: str | None = None,
        device_id: int = 0,
        max_device_memory: str | None = None,
        place: Place = ALONE,
    ) -> None:
        chosen = profile.choose_dtype(dtype)
        place.plan.check(config)
        self._config = config
        self._profile = profile
        self._capabilities = RuntimeCapabilities(
            name=profile.name, dtype=chosen, training=True, world_size=place.plan.tensor
        )

        def load() -> tuple[Glm3Cells, Ranks | None]:
            set_up(profile, device_id=device_id, max_device_memory=max_device_memory)
            # Imported here: mindspore must load on the executor, and only when it is used.
            from glm3sdk.adapters.mindspore.model.transformer import Glm3Cells
            from glm3sdk.adapters.mindspore.weights import LoadedWeights

            if place.alone:
                return Glm3Cells(config, profile, LoadedWeights(checkpoint, dtype=chosen)), None
            from glm3sdk.adapters.mindspore.ranks import Ranks, check_entered

            check_entered(place)
            ranks = Ranks(config, place, profile)
            shares = ranks.shares()
            weights = LoadedWeights(
                checkpoint, dtype=chosen, share_of=lambda name: shares.share(name, place)
            )
            return Glm3Cells(ranks.local, profile, weights, ranks=ranks.tensor), ranks

        self._cells: Glm3Cells | None
        self._cells, self._ranks = translated(load)

    @property
    def config(self) -> Glm3Config:
        """The model's hyper-parameters."""
        return self._config

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What this runtime can do."""
        return self._capabilities

    def start_decode(self, *, slots: int, max_seq_length: int) -> DecodeSession:
        """Allocate a kv_cache; see the port."""
        cells = self._open_cells()
        from glm3sdk.adapters.mindspore.session import MindSporeDecodeSession

        return MindSporeDecodeSession(
            self._config,
            self._profile,
            cells,
            slots=slots,
            max_seq_length=max_seq_length,
            ranks=self._ranks,
        )

    def start_training(self, *, plan: TrainingPlan) -> TrainingSession:
        """Train every weight or an adapter; see the port."""
        cells = self._open_cells()
        from glm3sdk.adapters.mindspore.training import MindSporeTrainingSession

        return MindSporeTrainingSession(
            self._config, self._profile, cells, plan=plan, ranks=self._ranks
        )

    def close(self) -> None:
        """Free the weights; sessions that are still open keep them until they are closed too."""
        if self._cells is not None:
            self._cells = None
            EXECUTOR.clear_up(free_unused)

    def _open_cells(self) -> Glm3Cells:
        if self._cells is None:
            raise ServiceClosedError("this runtime was closed; load it again")
        return self._cells
