"""image_patches: values against torch's unfold, in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import ConvCase, make_tensor, over_cases, over_dtypes
from implementations import Ops
from torch import Tensor

from mobilenet_ext.geometry import patch_columns

NAMES = (
    "stride_2_keras_odd_map", "kernel_2_even", "kernel_5_stride_2", "padding_wider_than_kernel",
    "smaller_than_kernel", "stride_wider_than_kernel", "sliced", "contiguous", "one_row",
)  # fmt: skip


def call(ops: Ops, case: ConvCase, x: Tensor) -> Tensor:
    patches: Tensor = ops.image_patches(x, case.kernel, case.stride, *case.padding)
    return patches


@over_dtypes
@over_cases(NAMES)
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_patches_are_what_a_convolution_reads(
    ops: Ops, case: ConvCase, channels: int, dtype: torch.dtype
) -> None:
    case = replace(case, channels=channels, dilation=1)
    x = make_tensor(case.shape, case.layout, dtype)
    left, right, top, bottom = case.padding
    padded = F.pad(x.double(), (left, right, top, bottom))
    columns = F.unfold(padded, case.kernel, stride=case.stride)  # [N, C * taps, pixels]
    taps = columns.unflatten(1, (channels, -1)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)
    patches = call(ops, case, x)
    assert patches.dtype == dtype
    assert patches.shape == (taps.shape[0], patch_columns(case.kernel, channels))
    assert torch.equal(patches[:, : taps.shape[1]].double(), taps)
    assert not patches[:, taps.shape[1] :].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": 0}, r"kernel size must be in \[1, 16777216\], got 0"),
        ({"stride": 0}, r"stride must be in \[1, 16777216\], got 0"),
        ({"pad_top": -1}, r"pad_top must be in \[0, 16777216\], got -1"),
        ({"kernel": 9}, "padded input must be at least as large as the dilated kernel, 9 x 9"),
        ({"input": torch.zeros(3, 8, 8)}, r"input must be \[N, C, H, W\], got \[3, 8, 8\]"),
    ],
    ids=str,
)
def test_bad_arguments(changes: dict[str, object], message: str) -> None:
    arguments = {"input": torch.zeros(1, 3, 8, 8), "kernel": 3, "stride": 2}
    arguments |= dict.fromkeys(("pad_left", "pad_right", "pad_top", "pad_bottom"), 0)
    with pytest.raises(RuntimeError, match=f"image_patches: {message}"):
        torch.ops.mobilenet_ext.image_patches(**(arguments | changes))
