"""What a finetune run keeps: checkpoints to resume from, and its result."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from glm3sdk.domain.training import LossScale
from glm3sdk.errors import Glm3Error, InvalidCheckpointError
from glm3sdk.ports.checkpoint_store import CheckpointStore, StoredCheckpoint
from glm3sdk.ports.training import StatePart, TrainingSession

RESULT = "result"
CHECKPOINTS = "checkpoints"

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "training_state.json"

_log = logging.getLogger(__name__)


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

    Attributes:
        store: where they go.
        uri: the run's directory.
        keep: newest checkpoints that stay.
        files: small files that make each of them a model that can be loaded.
        weights_file: name of the file of trained tensors.
        fingerprint: what a resumed run must share with the one before, as JSON values.
        before_publish: is called when all of a checkpoint is written and none of it is seen.
    """

    store: CheckpointStore
    uri: str
    keep: int
    files: Mapping[str, bytes]
    weights_file: str
    fingerprint: Mapping[str, Any]
    before_publish: Callable[[], None] = lambda: None

    def uri_of(self, step: int) -> str:
        """Where the checkpoint of a step is; names sort as steps do."""
        return f"{self.uri}/{CHECKPOINTS}/step-{step:08d}"

    def save(self, session: TrainingSession, progress: Progress) -> str:
        """Publish a checkpoint to resume from, then let old ones go.

        Raises:
            CheckpointWriteError: it could not be written; the older ones are as they were.
        """
        uri = self.uri_of(progress.step)
        self._publish(uri, session, progress, *StatePart)
        self._delete_old()
        return uri

    def publish_result(self, session: TrainingSession, progress: Progress) -> str:
        """Publish what was trained, without the optimizer's state.

        Raises:
            CheckpointWriteError: it could not be written.
        """
        self._delete_old()  # a run killed in `save` may have left one too many
        uri = f"{self.uri}/{RESULT}"
        self._publish(uri, session, progress, StatePart.WEIGHTS)
        return uri

    def newest(self) -> tuple[StoredCheckpoint, Progress] | None:
        """The newest checkpoint, read whole and found intact; None where there is none.

        Raises:
            InvalidCheckpointError: it is damaged (the message says which older one is not),
                or of another configuration.
        """
        published = self.store.list(f"{self.uri}/{CHECKPOINTS}")
        if not published:
            return None
        try:
            checkpoint, state = self._intact(published[-1])
        except InvalidCheckpointError as exc:
            remedy = self._remedy(published)
            raise InvalidCheckpointError(
                f"the newest checkpoint is damaged: {exc}. {remedy}"
            ) from exc
        self._check_fingerprint(published[-1], state["fingerprint"])
        return checkpoint, Progress.from_json(state)

    def _publish(
        self, uri: str, session: TrainingSession, progress: Progress, *parts: StatePart
    ) -> None:
        names = {StatePart.WEIGHTS: self.weights_file, StatePart.OPTIMIZER: OPTIMIZER_FILE}
        state = {**progress.to_json(), "fingerprint": self.fingerprint}
        writer = self.store.create(uri)
        try:
            for name, data in self.files.items():
                writer.add_file(name, data)
            for part in parts:
                writer.add_tensors(names[part], session.specs(part), session.state(part))
            writer.add_file(STATE_FILE, json.dumps(state, indent=1).encode())
            self.before_publish()
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def _delete_old(self) -> None:
        for old in self.store.list(f"{self.uri}/{CHECKPOINTS}")[: -self.keep]:
            try:
                self.store.delete(old)
            except Glm3Error as exc:
                # It costs room and no more; the next checkpoint tries again.
                _log.warning("an old checkpoint stays: %s", exc)

    def _intact(self, uri: str) -> tuple[StoredCheckpoint, dict[str, Any]]:
        checkpoint = self.store.open(uri)
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
        return checkpoint, state

    def _remedy(self, published: tuple[str, ...]) -> str:
        damaged = [published[-1]]
        for older in reversed(published[:-1]):
            try:
                self._intact(older)
            except InvalidCheckpointError:
                damaged.append(older)
            else:
                return f"Remove {', '.join(damaged)} and resume: {older} is intact"
        return "No older checkpoint is intact: begin again with another output"

    def _check_fingerprint(self, uri: str, before: Mapping[str, Any]) -> None:
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
