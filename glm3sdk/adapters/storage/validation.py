"""Whether a checkpoint's tensors fit a model, told from headers alone."""

from __future__ import annotations

from glm3sdk.domain.model import IGNORED_TENSORS, Glm3Config
from glm3sdk.errors import InvalidCheckpointError
from glm3sdk.ports.checkpoint_store import CheckpointReader

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_NAMED = 3


def require_tensors(reader: CheckpointReader, config: Glm3Config) -> tuple[str, ...]:
    """Check that every weight of the model is there in its shape and a float dtype.

    Returns:
        The names that the model does not use, sorted; derived tensors are left out.

    Raises:
        InvalidCheckpointError: weights are missing, of another shape or not floats.
    """
    expected, found = config.tensor_shapes(), reader.tensors
    missing = [name for name in expected if name not in found]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise InvalidCheckpointError(
            f"the checkpoint lacks {', '.join(missing[:_NAMED])}{more}; "
            f"is it complete, and is config.json (num_layers={config.num_layers}) its own?"
        )
    for name, shape in expected.items():
        spec = found[name]
        if spec.shape != shape:
            raise InvalidCheckpointError(
                f"tensor {name} has shape {list(spec.shape)} and config.json asks for "
                f"{list(shape)}; use the config.json that belongs to these weights"
            )
        if spec.dtype not in _FLOATS:
            raise InvalidCheckpointError(
                f"tensor {name} is {spec.dtype}; convert it to one of {', '.join(_FLOATS)}"
            )
    return tuple(
        sorted(
            name for name in found.keys() - expected.keys() if not name.endswith(IGNORED_TENSORS)
        )
    )
