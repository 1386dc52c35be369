"""Where a convolution looks: padding rules, output sizes, and the integers that the ops take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from .batch_norm import Options

Padding: TypeAlias = int | tuple[int, int, int, int] | Literal["same"]
"""The same on every side, (left, right, top, bottom), or TensorFlow's SAME by input size."""


class Conv(NamedTuple):
    """Geometry of a depthwise convolution, in the order in which the ops take it."""

    stride: int
    pad_left: int
    pad_right: int
    pad_top: int
    pad_bottom: int
    dilation: int

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """(left, right, top, bottom), as `torch.nn.functional.pad` takes it."""
        return self[1:5]

    def output_size(self, size: Sequence[int], kernel_size: int) -> tuple[int, int]:
        """Height and width of the output, from those of the input."""
        reach = self.dilation * (kernel_size - 1) + 1
        height, width = size
        return (
            (height + self.pad_top + self.pad_bottom - reach) // self.stride + 1,
            (width + self.pad_left + self.pad_right - reach) // self.stride + 1,
        )


class Unit(NamedTuple):
    """What is not a tensor in a depthwise unit: geometry, and its BatchNorm."""

    conv: Conv
    bn: Options


def patch_columns(kernel_size: int, channels: int) -> int:
    """Return the columns of image_patches: the values of a patch, and zeros up to a vector of 8."""
    return (kernel_size * kernel_size * channels + 7) // 8 * 8


def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> tuple[int, int]:
    """Pad one axis as TensorFlow's SAME: output size ceil(size / stride), the odd one at the end.

    With a stride the padding depends on `size % stride`, which is all that a compiled graph
    with dynamic sizes is specialised on.
    """
    remainder = int(size % stride)
    total = max((kernel_size - 1) * dilation + 1 - (remainder or stride), 0)
    return total // 2, total - total // 2


_SAME = (-1, -1, -1, -1)


def padding_columns(padding: Padding) -> tuple[int, int, int, int]:
    """Write a padding rule as four integers, of whatever size the map will be."""
    if isinstance(padding, int):
        return (padding, padding, padding, padding)
    return _SAME if padding == "same" else padding


def padding_rule(columns: Sequence[int]) -> Padding:
    """Read what padding_columns has written."""
    left, right, top, bottom = columns
    pads = (left, right, top, bottom)
    return "same" if pads == _SAME else pads


def conv_geometry(
    size: Sequence[int], kernel_size: int, stride: int, padding: Padding, dilation: int
) -> Conv:
    """Resolve a padding rule for a map of a size (height, width)."""
    if padding == "same":
        height, width = size
        pads = (
            *same_padding(width, kernel_size, stride, dilation),
            *same_padding(height, kernel_size, stride, dilation),
        )
    else:
        pads = padding_columns(padding)
    return Conv(stride, *pads, dilation)
