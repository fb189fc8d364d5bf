"""What differs between devices, as values: the cells are the same."""

from __future__ import annotations

import attrs

from glm3sdk.errors import UnsupportedOptionError


@attrs.frozen(kw_only=True)
class DeviceProfile:
    """A device and the kernels that it has.

    Attributes:
        name: the runtime's name.
        device_target: MindSpore's name of the device.
        dtypes: what the weights may be held in; the first is the default.
        fused_norm: RmsNorm is one kernel.
        fused_rope: rotary embedding is one kernel.
        fused_attention: FlashAttentionScore (prefill, training) and IncreFlashAttention
            (decode) replace the explicit matrix products.
        fused_swiglu: `silu(x1) * x2` is one kernel.
        gathers_in_groups: AllGather runs over some of the ranks too; else AllReduce does its work.
        reduce_scatter: ReduceScatter replaces an AllReduce of which a part is used.
    """

    name: str
    device_target: str
    dtypes: tuple[str, ...]
    fused_norm: bool
    fused_rope: bool
    fused_attention: bool
    fused_swiglu: bool
    gathers_in_groups: bool
    reduce_scatter: bool

    def choose_dtype(self, dtype: str | None) -> str:
        """The dtype to hold weights in.

        Raises:
            UnsupportedOptionError: this device does not compute in that dtype.
        """
        if dtype is None:
            return self.dtypes[0]
        if dtype not in self.dtypes:
            raise UnsupportedOptionError(
                f"runtime {self.name!r} does not compute in {dtype!r} "
                f"(it does in {', '.join(self.dtypes)})"
            )
        return dtype


CPU = DeviceProfile(
    name="mindspore-cpu",
    device_target="CPU",
    # MindSpore has no bfloat16 product on CPU, and its float16 one is 14 times slower a byte.
    dtypes=("float32",),
    fused_norm=False,
    fused_rope=False,
    fused_attention=False,
    fused_swiglu=False,
    gathers_in_groups=False,
    reduce_scatter=False,
)

ASCEND = DeviceProfile(
    name="mindspore-ascend",
    device_target="Ascend",
    dtypes=("bfloat16", "float16", "float32"),
    fused_norm=True,
    fused_rope=True,
    fused_attention=True,
    fused_swiglu=True,
    gathers_in_groups=True,
    reduce_scatter=True,
)

PROFILES = {profile.name: profile for profile in (CPU, ASCEND)}
