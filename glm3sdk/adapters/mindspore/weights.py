"""Loads a checkpoint's tensors into Parameters; the names are Hugging Face's own."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from glm3sdk.domain.tensor_shares import Share
from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader

DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}


class LoadedWeights:
    """Gives each Parameter of the model; one tensor is in host memory at a time.

    Args:
        checkpoint: whole tensors.
        dtype: what to hold them in.
        share_of: this rank's share of the tensor of a name; None is all of it.
    """

    def __init__(
        self,
        checkpoint: CheckpointReader,
        *,
        dtype: str,
        share_of: Callable[[str], Share] | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._share_of = share_of

    def __call__(self, name: str) -> Parameter:
        """Read and convert the tensor of that name."""
        share = self._share_of(name) if self._share_of else None
        tensor = host_to_tensor(read_share(self._checkpoint, name, share), self._dtype)
        return Parameter(tensor, name=name, requires_grad=False)


def read_share(checkpoint: CheckpointReader, name: str, share: Share | None) -> HostArray:
    """Read a share of a tensor, and no other rows of it; None reads all."""
    if share is None or share.is_whole:
        return checkpoint.read(name)
    return np.concatenate([checkpoint.read(name, region) for region in share.regions])


def host_to_tensor(value: HostArray, dtype: str) -> Tensor:
    """Copy a host array into a Tensor of `dtype`."""
    if dtype == "bfloat16":
        # MindSpore takes no ml_dtypes array; float32 holds every bfloat16 exactly.
        return Tensor(np.asarray(value, dtype=np.float32, order="C")).astype(ms.bfloat16)
    return Tensor(np.asarray(value, dtype=np.dtype(dtype), order="C"))


def tensor_to_host(tensor: Tensor) -> HostArray:
    """Copy a Tensor into a host array; bfloat16 comes as float32."""
    if tensor.dtype == ms.bfloat16:
        tensor = tensor.astype(ms.float32)
    # `asnumpy` may give a view of the tensor's memory, which the next step writes to.
    return np.array(tensor.asnumpy())


def host_dtype(parameter: Parameter) -> str:
    """The dtype in which `tensor_to_host` gives a Parameter."""
    return "float32" if parameter.dtype == ms.bfloat16 else str(parameter.dtype).lower()


def set_parameter(parameter: Parameter, value: HostArray) -> None:
    """Give a Parameter other values of the same shape."""
    parameter.set_data(host_to_tensor(value, str(parameter.dtype).lower()))
