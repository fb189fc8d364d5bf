"""What a finetune run keeps: checkpoints to resume from, and its result."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from glm3sdk.domain.training import LossScale
from glm3sdk.errors import Glm3Error, InvalidCheckpointError
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader, CheckpointStore, TensorSpec
from glm3sdk.ports.training import StatePart, TrainingSession
from glm3sdk.services.run_ranks import ALONE, RunRanks
from glm3sdk.services.run_shards import RunShards, StrategyFormat

RESULT = "result"
CHECKPOINTS = "checkpoints"

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "training_state.json"

_SHARDED = "sharded"
# What a fingerprint's key was called before a run had several ranks.
_RENAMED = {"training.accumulate": "training.accumulate x parallel.data"}

_log = logging.getLogger(__name__)

_Tensors = tuple[str, Mapping[str, TensorSpec], Iterable[tuple[str, HostArray]]]
"""A file's name, what it will hold, and the values."""


@attrs.frozen(kw_only=True)
class Progress:
    """Where a run stands, beside its tensors. All else follows from the step.

    Attributes:
        step: optimizer steps taken, skipped ones included.
        eval_loss: of the last evaluation.
        loss_scale: of the next step.
    """

    step: int = 0
    eval_loss: float | None = None
    loss_scale: LossScale | None = None

    def to_json(self) -> dict[str, Any]:
        """The progress as JSON values."""
        return attrs.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError: it is not what `to_json` wrote.
        """
        scale = values["loss_scale"]
        return cls(
            step=values["step"],
            eval_loss=values["eval_loss"],
            loss_scale=LossScale(**scale) if scale else None,
        )


@attrs.frozen(kw_only=True)
class RunCheckpoints:
    """The checkpoints and the result of one run's directory.

    A process alone writes its tensors into the checkpoint. Several ranks each write their part
    beside it (`RunShards`), before the first of them publishes it; the result is whole in any case.
    Every rank calls every method alike.

    Attributes:
        store: where they go.
        uri: the run's directory.
        keep: newest checkpoints that stay.
        files: small files that make each of them a model that can be loaded.
        weights_file: name of the file of trained tensors.
        fingerprint: what a resumed run must share with the one before, as JSON values.
        strategies: the format of what tells how ranks share tensors out; without one, nothing
            that several ranks wrote is read or written.
        ranks: this process and the others of the run.
        before_publish: is called when all of a checkpoint is written and none of it is seen.
    """

    store: CheckpointStore
    uri: str
    keep: int
    files: Mapping[str, bytes]
    weights_file: str
    fingerprint: Mapping[str, Any]
    strategies: StrategyFormat | None = None
    ranks: RunRanks = ALONE
    before_publish: Callable[[], None] = lambda: None

    @property
    def _shards(self) -> RunShards:
        return RunShards(store=self.store, uri=self.uri, format=self.strategies, ranks=self.ranks)

    def uri_of(self, step: int) -> str:
        """Where the checkpoint of a step is; names sort as steps do."""
        return f"{self.uri}/{CHECKPOINTS}/{_name_of(step)}"

    def save(self, session: TrainingSession, progress: Progress) -> str:
        """Publish a checkpoint to resume from, then let old ones go.

        Raises:
            CheckpointWriteError: it could not be written; the older ones are as they were.
            RuntimeFailureError: another rank could not write its part.
        """
        uri = self.uri_of(progress.step)
        if self.ranks.size == 1:
            files = {StatePart.WEIGHTS: self.weights_file, StatePart.OPTIMIZER: OPTIMIZER_FILE}
            self._publish(uri, progress, *(_part(session, part, files[part]) for part in StatePart))
        else:
            self._shards.write(_name_of(progress.step), session, *StatePart)
            self.ranks.lead(lambda: self._publish(uri, progress, sharded=True))
        self._delete_old()
        return uri

    def publish_result(self, session: TrainingSession, progress: Progress) -> str:
        """Publish what was trained, without the optimizer's state.

        Raises:
            CheckpointWriteError: it could not be written.
            RuntimeFailureError: another rank could not write its part.
        """
        self._delete_old()  # a run killed in `save` may have left one too many
        uri = f"{self.uri}/{RESULT}"
        if self.ranks.size == 1:
            self._publish(uri, progress, _part(session, StatePart.WEIGHTS, self.weights_file))
        else:
            self._shards.write(RESULT, session, StatePart.WEIGHTS)
            self.ranks.lead(lambda: self._publish_merged(uri, progress))
        return uri

    def newest(self) -> tuple[CheckpointReader, Progress] | None:
        """The newest checkpoint, read whole and found intact; None where there is none.

        Of what several ranks wrote, each rank reads a part.

        Raises:
            InvalidCheckpointError: it is damaged (the message says which older one is not),
                or of another configuration; or ranks do not see the same one.
            RuntimeFailureError: another rank found that.
        """
        found = self.ranks.together(self._newest)
        steps = self.ranks.each(float(found[1].step) if found else 0.0)
        if len(set(steps)) > 1:
            told = ", ".join(f"{step:.0f} on rank {rank}" for rank, step in enumerate(steps))
            raise InvalidCheckpointError(
                f"{self.uri}: ranks see different newest checkpoints (step {told}); the output "
                "must be a directory that all nodes share, or a URI such as obs://BUCKET/RUN"
            )
        return found

    def _newest(self) -> tuple[CheckpointReader, Progress] | None:
        published = self.store.list(f"{self.uri}/{CHECKPOINTS}")
        if not published:
            return None
        try:
            checkpoint, state = self._intact(published[-1], self.ranks)
        except InvalidCheckpointError as exc:
            remedy = self._remedy(published)
            raise InvalidCheckpointError(
                f"the newest checkpoint is damaged: {exc}. {remedy}"
            ) from exc
        self._check_fingerprint(published[-1], state["fingerprint"])
        return checkpoint, Progress.from_json(state)

    def _publish(
        self, uri: str, progress: Progress, *tensors: _Tensors, sharded: bool = False
    ) -> None:
        state = {**progress.to_json(), "fingerprint": self.fingerprint}
        if sharded:
            state[_SHARDED] = True
        writer = self.store.create(uri)
        try:
            for name, data in self.files.items():
                writer.add_file(name, data)
            for file, specs, values in tensors:
                writer.add_tensors(file, specs, values)
            writer.add_file(STATE_FILE, json.dumps(state, indent=1).encode())
            self.before_publish()
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def _publish_merged(self, uri: str, progress: Progress) -> None:
        """Publish what the ranks stored as one model, and remove their parts."""
        merged = self._shards.open(RESULT)
        values = ((name, merged.read(name)) for name in merged.tensors)
        self._publish(uri, progress, (self.weights_file, merged.tensors, values))
        _remove(self._shards.delete, RESULT)

    def _delete_old(self) -> None:
        if not self.ranks.leads:
            return
        published = self.store.list(f"{self.uri}/{CHECKPOINTS}")
        for old in published[: -self.keep]:
            _remove(self.store.delete, old)
        left = {_last(uri) for uri in self.store.list(f"{self.uri}/{CHECKPOINTS}")}
        for name in self._shards.names():
            # Also what ranks left that were killed before their checkpoint was published.
            if name not in left:
                _remove(self._shards.delete, name)

    def _intact(self, uri: str, ranks: RunRanks) -> tuple[CheckpointReader, dict[str, Any]]:
        """A checkpoint and its state, after `ranks` together have read it whole."""
        checkpoint = self.store.open(uri)
        if ranks.leads:
            checkpoint.verify()
        data = checkpoint.read_file(STATE_FILE)
        try:
            state: dict[str, Any] = json.loads(data)
            Progress.from_json(state)
            state["fingerprint"].keys()
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise InvalidCheckpointError(
                f"{uri}: {STATE_FILE} is not a run's state: {exc}"
            ) from exc
        if state.get(_SHARDED):
            return self._shards.open(_last(uri), verified_by=ranks), state
        return checkpoint, state

    def _remedy(self, published: tuple[str, ...]) -> str:
        damaged = [published[-1]]
        for older in reversed(published[:-1]):
            try:
                self._intact(older, ALONE)
            except InvalidCheckpointError:
                damaged.append(older)
            else:
                return f"Remove {', '.join(damaged)} and resume: {older} is intact"
        return "No older checkpoint is intact: begin again with another output"

    def _check_fingerprint(self, uri: str, before: Mapping[str, Any]) -> None:
        before = {_RENAMED.get(key, key): value for key, value in before.items()}
        changed = [
            f"{key} was {before.get(key)!r} and is {self.fingerprint.get(key)!r}"
            for key in sorted({*before, *self.fingerprint})
            if before.get(key) != self.fingerprint.get(key)
        ]
        if changed:
            raise InvalidCheckpointError(
                f"{uri} is of a run with another configuration: {', '.join(changed)}; "
                "resume with the same one, or choose another output"
            )


def _part(session: TrainingSession, part: StatePart, file: str) -> _Tensors:
    return file, session.specs(part), session.state(part)


def _remove(delete: Callable[[str], None], what: str) -> None:
    try:
        delete(what)
    except Glm3Error as exc:
        # It costs room and no more; the next checkpoint tries again.
        _log.warning("an old checkpoint stays: %s", exc)


def _name_of(step: int) -> str:
    return f"step-{step:08d}"


def _last(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[1]
