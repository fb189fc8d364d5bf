"""The errors that glm3sdk raises. Each message names the value and the remedy.

A `UserError` is a mistake in what was passed in (the command line exits with 2); any
other `Glm3Error` is a failure while doing what was asked (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple


class Glm3Error(Exception):
    """The base of every error that this package raises on purpose."""


class UserError(Glm3Error):
    """The caller passed something that cannot work; the message says what to pass."""


class InvalidMessageError(UserError):
    """A chat history, a message or its content is not what the model can read."""


class InvalidToolError(UserError):
    """A tool description is not a name, a description and a JSON Schema."""


class InvalidGenerationConfigError(UserError):
    """A generation parameter is out of its range, or two of them contradict."""


class InvalidConstraintError(UserError):
    """A schema, pattern, grammar or choice cannot be written to; the message quotes the place."""


class UnsupportedSchemaError(InvalidConstraintError):
    """A JSON Schema uses a keyword that cannot be enforced while a reply is written."""


class InvalidConfigError(UserError):
    """A model's config.json is missing, unreadable or of another architecture."""


class Problem(NamedTuple):
    """What is wrong with one key of a run configuration.

    Attributes:
        file: where it was read; "--set" for an override, "" for a value given from Python.
        line: counted from 1; 0 where there is none.
        column: counted from 1; 0 where there is none.
        key: dotted, such as "training.epochs"; "" for the file as a whole.
        message: what is wrong and what would be right.
    """

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        if self.file == "--set":
            return f"--set {self.key}: {self.message}"
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.message) if part)


class InvalidRunConfigError(UserError):
    """A run configuration cannot be used; the message has one line a problem.

    Attributes:
        problems: every one that was found, in the order of the file.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class InvalidCheckpointError(UserError):
    """A checkpoint is missing, truncated, or its tensors do not fit the model."""


class UnsafeCheckpointError(InvalidCheckpointError):
    """A checkpoint asks for code to be run, or for a file outside its place; neither happened."""


class InvalidTokenizerError(UserError):
    """A tokenizer file is missing, unreadable, or does not fit the model."""


class InvalidDatasetError(UserError):
    """A training record cannot be used; the message names the file and the line."""


class InvalidRankTableError(UserError):
    """A rank table cannot be used; the message names the file and the field."""


class InvalidPlacementError(UserError):
    """The environment does not say which rank this process is, or says two things."""


class LaunchError(UserError):
    """A job of several processes cannot be started as asked; the message says what to pass."""


class InvalidParallelPlanError(UserError):
    """A model or the devices cannot be shared out as a plan says; the message names the sizes."""


class PromptTooLongError(UserError):
    """The prompt leaves no room for a reply within the context length."""


class SlotError(UserError):
    """A slot index, a length or a token id is outside what the session holds."""


class UnknownNameError(UserError):
    """No runtime, preset or plugin goes by that name."""


class PluginError(UserError):
    """An installed plugin cannot be used; the message names it."""


class BackendUnavailableError(UserError):
    """A framework or a device is not installed here; the message says what to install."""


class AddressUnavailableError(UserError):
    """The server cannot listen at an address; the message names it."""


class UnsupportedOptionError(UserError):
    """A known option that this version or this runtime does not implement."""


class NonFiniteLogitsError(Glm3Error):
    """The model returned NaN or infinite logits; the message names the step."""


class NonFiniteLossError(Glm3Error):
    """A training step's loss or gradient norm is NaN or infinite."""


class RuntimeFailureError(Glm3Error):
    """The framework failed while it ran a graph; the cause is chained."""


class CheckpointWriteError(Glm3Error):
    """A checkpoint could not be written (no room, no permission); nothing was published."""


class BlobAccessError(UserError):
    """A blob store refuses: no credentials, no permission, no such bucket, a wrong clock."""


class OfflineError(UserError):
    """Something has to be fetched, and the offline switch forbids it."""


class BlobUnavailableError(Glm3Error):
    """A blob store did not answer, or not to the end; another try may succeed."""


class BlobChangedError(Glm3Error):
    """A blob was replaced or removed while it was read."""


class TransferError(Glm3Error):
    """Bytes could not be brought over, or did not arrive as they were sent."""


class JobFailedError(Glm3Error):
    """A launched job ended before its work was done; the message names the rank or the node.

    Attributes:
        exit_code: the failed worker's, 128 and the signal's number for one that was killed.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class ServiceClosedError(Glm3Error):
    """The service or the session was closed and cannot be used any more."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for an unknown name: what is known, and the likeliest spelling.

    Args:
        kind: what the name stands for, such as "runtime".
        name: what was asked for.
        known: every name that would have worked.
    """
    names = sorted(known)
    message = f"no {kind} {name!r} (known: {', '.join(names) or 'none'})"
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        message += f"; did you mean {close[0]!r}?"
    return UnknownNameError(message)
