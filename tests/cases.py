"""The case table and the tolerance table: every shape, layout and bound that the tests share.

Cases are chosen and named, never a cross product: each is here because a kernel could fail on it
and on none of the others. Tensors are views into buffers of NaN, so that a read outside of a
tensor shows in the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from layouts import LAYOUTS, in_nan
from torch import Tensor

ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPE_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]


@dataclass(frozen=True)
class ConvCase:
    """A depthwise convolution, or with `out_channels` a pointwise one (see `pointwise_case`).

    `padding` is (left, right, top, bottom).
    """

    name: str
    batch: int
    channels: int
    height: int
    width: int
    kernel: int = 3
    stride: int = 1
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: int = 1
    layout: str = "channels_last"  # of the input, see `LAYOUTS`
    grad_layout: str = "channels_last"  # of the gradient of the output
    activation: str | None = "relu6"
    out_channels: int = 0

    @property
    def op(self) -> str:
        return "pointwise_conv" if self.out_channels else "depthwise_conv"

    @property
    def channels_after(self) -> int:
        return self.out_channels or self.channels

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.height, self.width

    @property
    def geometry(self) -> tuple[int, int, int, int, int, int]:
        """The last arguments of the ops: stride, the four paddings, dilation."""
        return (self.stride, *self.padding, self.dilation)

    @property
    def code(self) -> int:
        return ACTIVATIONS[self.activation]


def pointwise_case(
    name: str, batch: int, channels: int, out_channels: int, height: int, width: int, **options: str
) -> ConvCase:
    return ConvCase(
        name,
        batch,
        channels,
        height,
        width,
        1,
        1,
        (0, 0, 0, 0),
        out_channels=out_channels,
        **options,
    )


_NHWC_CASES = (
    # Maps that are all border, or no map at all.
    ConvCase("empty_batch", 0, 8, 5, 5),
    ConvCase("one_pixel", 1, 8, 1, 1),
    ConvCase("smaller_than_kernel", 2, 9, 2, 1, kernel=5, padding=(2, 2, 2, 2)),
    ConvCase("one_row", 2, 8, 1, 11),
    ConvCase("one_column", 2, 8, 11, 1, activation="relu"),
    ConvCase("padding_wider_than_kernel", 1, 8, 3, 4, padding=(4, 0, 0, 5)),
    ConvCase("no_padding", 2, 8, 6, 7, padding=(0, 0, 0, 0), activation=None),
    ConvCase("odd_map", 2, 16, 7, 9, activation="relu"),
    # Channels below, at and above one vector, and one more than two and four.
    ConvCase("channels_1", 2, 1, 5, 6),
    ConvCase("channels_3", 2, 3, 5, 6, activation="relu"),
    ConvCase("channels_8", 2, 8, 5, 6),
    ConvCase("channels_9", 2, 9, 5, 6, activation=None),
    ConvCase("channels_16", 2, 16, 5, 6),
    ConvCase("channels_17", 2, 17, 5, 6, activation="relu"),
    ConvCase("channels_33", 2, 33, 5, 6),
    # Strides and kernels.
    ConvCase("stride_2_odd_map", 2, 9, 9, 11, stride=2),
    ConvCase("stride_2_even_map", 2, 9, 8, 10, stride=2),
    ConvCase("stride_2_keras_odd_map", 2, 9, 9, 11, stride=2, padding=(0, 1, 0, 1)),
    ConvCase("stride_2_keras_even_map", 2, 9, 8, 10, stride=2, padding=(0, 1, 0, 1)),
    ConvCase("stride_2_one_pixel", 2, 24, 1, 1, stride=2),
    ConvCase("stride_3", 1, 8, 10, 11, stride=3, padding=(1, 0, 2, 1)),
    ConvCase("stride_wider_than_kernel", 1, 8, 11, 10, kernel=2, stride=3, padding=(1, 1, 0, 0)),
    ConvCase("kernel_1", 2, 8, 4, 5, kernel=1, padding=(0, 0, 0, 0)),
    ConvCase("kernel_2_even", 2, 9, 6, 5, kernel=2, padding=(0, 1, 0, 1), activation="relu"),
    ConvCase("kernel_5", 2, 17, 7, 8, kernel=5, padding=(2, 2, 2, 2)),
    ConvCase("kernel_5_stride_2", 2, 9, 9, 8, kernel=5, stride=2, padding=(1, 2, 1, 2)),
    ConvCase("kernel_7", 1, 9, 9, 8, kernel=7, padding=(3, 3, 3, 3)),
    ConvCase("dilation_2", 2, 9, 9, 8, padding=(2, 2, 2, 2), dilation=2),
    ConvCase("dilation_2_stride_2", 2, 9, 9, 8, stride=2, padding=(1, 2, 0, 2), dilation=2),
    # Work that is split: in bands of rows, groups of images, blocks of channels, unevenly.
    ConvCase("bands", 1, 33, 67, 64),
    ConvCase("bands_stride_2", 1, 33, 131, 127, stride=2, padding=(0, 1, 0, 1)),
    ConvCase("bands_dilation_2", 1, 33, 67, 64, padding=(2, 2, 2, 2), dilation=2),
    ConvCase("image_groups", 5, 28, 32, 33, activation="relu"),
    ConvCase("channel_blocks", 1, 150, 19, 47),
    ConvCase("wide_map", 1, 40, 6, 700),
    # Layouts. Everything above is channels_last.
    ConvCase("contiguous", 2, 17, 6, 7, layout="contiguous", grad_layout="contiguous"),
    ConvCase("mixed_layouts", 2, 9, 6, 7, layout="contiguous"),
    ConvCase("mixed_layouts_stride_2", 2, 9, 6, 7, stride=2, grad_layout="contiguous"),
    ConvCase("sliced", 2, 17, 6, 7, layout="sliced", grad_layout="sliced"),
    ConvCase("sliced_channels", 2, 9, 6, 7, layout="sliced_channels"),
    ConvCase("transposed", 2, 17, 6, 7, layout="transposed", grad_layout="transposed"),
    ConvCase("expanded_batch", 3, 8, 6, 7, layout="expanded_batch", grad_layout="expanded_batch"),
    ConvCase("expanded_map", 2, 9, 6, 7, layout="expanded_map", grad_layout="expanded_map"),
    ConvCase("expanded_all", 2, 9, 6, 7, grad_layout="expanded_all"),
    ConvCase("misaligned", 2, 17, 6, 7, layout="misaligned", grad_layout="misaligned"),
)
_NCHW_CASES = (
    # Rows of whole vectors of pixels, before and after the convolution.
    ConvCase("nchw_vectors", 2, 5, 6, 8),
    ConvCase("nchw_vectors_stride_2", 2, 5, 9, 16, stride=2, activation="relu"),
    ConvCase("nchw_vectors_stride_2_keras", 2, 5, 8, 16, stride=2, padding=(0, 1, 0, 1)),
    ConvCase("nchw_vectors_of_many_images", 40, 3, 4, 4),
    ConvCase("nchw_vectors_in_bands", 1, 3, 67, 20, activation=None),
    ConvCase("nchw_vectors_in_bands_stride_2", 1, 3, 131, 24, stride=2, padding=(0, 1, 0, 1)),
    # Rows that grow by a vector, half of a strip that is outside of the input.
    ConvCase("nchw_vectors_padded", 2, 3, 5, 8, padding=(1, 5, 3, 0)),
    ConvCase("nchw_vectors_padded_stride_2", 2, 3, 5, 12, stride=2, padding=(1, 5, 0, 3)),
    ConvCase("nchw_vectors_padded_stride_2_keras", 2, 3, 5, 12, stride=2, padding=(0, 4, 1, 1)),
    # Rows of vectors whose padding, or address, or other end does not fit.
    ConvCase("nchw_no_vectors_padding", 2, 3, 5, 8, padding=(2, 0, 1, 1)),
    ConvCase("nchw_no_vectors_of_input", 2, 3, 5, 10, padding=(1, 3, 1, 1)),
    ConvCase("nchw_no_vectors_of_output", 2, 3, 9, 12, stride=2),
)


def _nchw(case: ConvCase, layout: str = "contiguous") -> ConvCase:
    return replace(case, layout=layout, grad_layout=layout)


_OF_EITHER_LAYOUT = (
    "empty_batch", "one_pixel", "smaller_than_kernel", "one_row", "one_column",
    "padding_wider_than_kernel", "no_padding", "odd_map", "channels_1", "channels_33",
    "stride_2_odd_map", "stride_2_keras_even_map", "stride_3", "stride_wider_than_kernel",
    "kernel_1", "kernel_2_even", "kernel_5_stride_2", "dilation_2", "dilation_2_stride_2",
    "image_groups", "channel_blocks", "wide_map",
)  # fmt: skip
CASES = (
    *_NHWC_CASES,
    *map(_nchw, _NCHW_CASES),
    _nchw(ConvCase("nchw_misaligned", 2, 3, 6, 8), "misaligned_contiguous"),
    *(
        replace(_nchw(case), name=f"nchw_{case.name}")
        for case in _NHWC_CASES
        if case.name in _OF_EITHER_LAYOUT
    ),
)
POINTWISE_CASES = (
    # No map, and maps of fewer pixels than a register tile has rows.
    pointwise_case("pointwise_empty_batch", 0, 8, 5, 3, 3),
    pointwise_case("pointwise_one_pixel", 1, 8, 16, 1, 1),
    pointwise_case("pointwise_five_pixels", 1, 9, 17, 1, 5),
    # Channels below, at and above a panel of 16, on either side.
    pointwise_case("pointwise_1_to_1", 2, 1, 1, 4, 5),
    pointwise_case("pointwise_3_to_33", 2, 3, 33, 4, 5, activation="relu"),
    pointwise_case("pointwise_16_to_16", 2, 16, 16, 5, 5),
    pointwise_case("pointwise_17_to_15", 2, 17, 15, 5, 7),
    pointwise_case("pointwise_64_to_160", 3, 64, 160, 7, 7, activation="relu"),
    # Pitches of 1 KB and more, which are padded.
    pointwise_case("pointwise_256_to_512", 1, 256, 512, 3, 3),
    # Work that is split: in ranges of pixels, shares of channels, tiles, and both, unevenly.
    pointwise_case("pointwise_ranges", 3, 32, 48, 61, 43),
    pointwise_case("pointwise_both_gradients_at_once", 3, 19, 37, 31, 29),
    pointwise_case("pointwise_shares", 1, 300, 420, 4, 5),
    pointwise_case("pointwise_ranges_and_shares", 2, 270, 330, 19, 17, activation="relu"),
    pointwise_case("pointwise_tiles", 1, 520, 130, 31, 33),
    # Layouts.
    pointwise_case(
        "pointwise_contiguous", 2, 17, 20, 6, 7, layout="contiguous", grad_layout="contiguous"
    ),
    pointwise_case("pointwise_sliced", 2, 17, 20, 6, 7, layout="sliced", grad_layout="transposed"),
    pointwise_case(
        "pointwise_expanded", 3, 16, 16, 6, 7, layout="expanded_batch", grad_layout="expanded_all"
    ),
    pointwise_case(
        "pointwise_misaligned", 2, 16, 32, 6, 7, layout="misaligned", grad_layout="misaligned"
    ),
)
POINTWISE = tuple(case.name for case in POINTWISE_CASES)
FEW_POINTWISE = (
    "pointwise_17_to_15",
    "pointwise_16_to_16",
    "pointwise_ranges",
    "pointwise_contiguous",
)

_BY_NAME = {case.name: case for case in (*CASES, *POINTWISE_CASES)}

# Where one case of each kind is enough.
FEW_CASES = (
    "channels_17", "stride_2_keras_odd_map", "kernel_5", "bands", "contiguous",
    "nchw_vectors", "nchw_vectors_stride_2", "nchw_vectors_stride_2_keras",
)  # fmt: skip


def case_named(name: str) -> ConvCase:
    return _BY_NAME[name]


def over_cases(names: Sequence[str] = tuple(case.name for case in CASES)) -> pytest.MarkDecorator:
    """Runs a test with `case` set to each of the named cases, by default all depthwise ones."""
    return pytest.mark.parametrize("case", [_BY_NAME[name] for name in names], ids=names)


over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)


@dataclass(frozen=True)
class Tolerance:
    rounding: float  # of storing a result: relative to the result
    arithmetic: float  # of computing it: relative to the largest magnitude that it is made of


TOLERANCES = {
    # Unit roundoff 2^-53 = 1.1e-16. Up to 49 taps, or a channel of some thousand pixels, added in
    # another order than the oracle's: some hundred roundings, mostly cancelling.
    torch.float64: Tolerance(rounding=2**-53, arithmetic=1e-14),
    # Unit roundoff 2^-24 = 6e-8; likewise.
    torch.float32: Tolerance(rounding=2**-24, arithmetic=2e-6),
    # 8 significant bits; the arithmetic is float32.
    torch.bfloat16: Tolerance(rounding=2**-8, arithmetic=2e-6),
    # 11 significant bits; the arithmetic is float32.
    torch.float16: Tolerance(rounding=2**-11, arithmetic=2e-6),
}


def vector_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of per-channel vectors that go with tensors of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_tensor(
    shape: Sequence[int], layout: str = "channels_last", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal values, [N, C, H, W] in the named layout."""
    return LAYOUTS[layout](torch.randn(*shape, dtype=torch.float64).to(dtype))


def make_vector(channels: int, low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Uniform values for each channel, misaligned and between NaNs, for tensors of `dtype`."""
    values = torch.rand(channels, dtype=torch.float64) * (high - low) + low
    return in_nan((channels,), vector_dtype(dtype), 1).copy_(values)


def make_weight(case: ConvCase, dtype: torch.dtype = torch.float32) -> Tensor:
    """[C, 1, K, K], or [C', C, 1, 1] for a pointwise convolution, between NaNs."""
    before = case.channels if case.out_channels else 1
    shape = (case.channels_after, before, case.kernel, case.kernel)
    return in_nan(shape, dtype, 3).copy_(torch.randn(shape, dtype=torch.float64))
