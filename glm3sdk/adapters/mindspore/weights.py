"""Loads a checkpoint's tensors into Parameters; the names are Hugging Face's own."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from glm3sdk.ports.arrays import HostArray
from glm3sdk.ports.checkpoint_store import CheckpointReader

DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}


class LoadedWeights:
    """Gives each Parameter of the model; one tensor is in host memory at a time."""

    def __init__(self, checkpoint: CheckpointReader, *, dtype: str) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype

    def __call__(self, name: str) -> Parameter:
        """Read and convert the tensor of that name."""
        tensor = host_to_tensor(self._checkpoint.read(name), self._dtype)
        return Parameter(tensor, name=name, requires_grad=False)


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
