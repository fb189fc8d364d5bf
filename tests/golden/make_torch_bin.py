"""Make torch_*.bin, checkpoints as torch saves them, and torch_bin.npz, what they hold.

pip install torch==2.13.0
python tests/golden/make_torch_bin.py
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
torch.manual_seed(0)


def module() -> torch.nn.Module:
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter)
    return layers


def parameter_with_state() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.randn(2, 3))
    parameter.note = "kept by torch"
    return parameter


def checkpoints() -> dict[str, dict[str, torch.Tensor]]:
    matrix, block = torch.randn(4, 6), torch.randn(2, 3, 4)
    integers = {
        name: torch.arange(5).to(getattr(torch, name))
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    }
    return {
        "floats": {
            name: torch.randn(5, 4).to(getattr(torch, name))
            for name in ("float16", "bfloat16", "float32", "float64")
        },
        "others": {
            **integers,
            "bool": torch.tensor([True, False, True]),
            "number": torch.tensor(3.5),
            "nothing": torch.empty(0, 4),
        },
        "views": {
            "matrix": matrix,
            "transposed": matrix.t(),
            "rows": matrix[1:3],
            "columns": matrix[:, 2:5],
            "every_second": matrix[:, ::2],
            "permuted": block.permute(2, 0, 1),
            "row_of_one": block[:1].transpose(0, 1),
        },
        "parameters": {
            "plain": torch.nn.Parameter(torch.randn(2, 3)),
            "with_state": parameter_with_state(),
        },
        "state_dict": module().state_dict(),
        "ordered": OrderedDict(b=torch.ones(2, 2), a=torch.zeros(3)),
    }


def array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy stores its bits
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


if __name__ == "__main__":
    expected = {}
    for name, tensors in checkpoints().items():
        torch.save(tensors, HERE / f"torch_{name}.bin")
        expected |= {f"{name}/{key}": array(value) for key, value in tensors.items()}
    np.savez_compressed(HERE / "torch_bin.npz", **expected)
    small = {"a": torch.ones(2, 2)}
    # The rest is not torch's default: a newer pickle protocol, no checksums, the format of
    # torch before 1.6, and what is not a dictionary of tensors.
    torch.save(small, HERE / "torch_protocol4.bin", pickle_protocol=4)
    torch.save(small, HERE / "torch_legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"a": small, "step": 3}, HERE / "torch_nested.bin")
    torch.save(module(), HERE / "torch_module.bin")
    torch.save({"a": torch.ones(2).expand(3, 2)}, HERE / "torch_expanded.bin")
    torch.serialization.set_crc32_options(compute_crc32=False)
    torch.save(small, HERE / "torch_unchecked.bin")
