"""image_conv and its backward: a dense convolution of few channels, against float64."""

from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
from cases import ConvCase, case_named, make_tensor, make_weight, over_cases, over_dtypes
from conv_checks import assert_statistics, magnitude
from oracle import assert_totals, assert_values
from samples import BackwardSample, make_backward_sample
from torch import Tensor
from torch.nn.grad import conv2d_weight

NAMES = (
    "empty_batch", "one_pixel", "one_row", "smaller_than_kernel", "padding_wider_than_kernel",
    "stride_2_keras_odd_map", "stride_2_odd_map", "stride_3", "stride_wider_than_kernel",
    "kernel_1", "kernel_2_even", "kernel_5_stride_2", "sliced", "sliced_channels", "contiguous",
    "mixed_layouts_stride_2", "misaligned", "image_groups",
)  # fmt: skip
FEW = ("stride_2_keras_odd_map", "kernel_5_stride_2", "smaller_than_kernel")

ops = torch.ops.mobilenet_ext


def image_case(case: ConvCase, channels: int = 3, filters: int = 16) -> ConvCase:
    return replace(case, channels=channels, out_channels=filters, dilation=1)


def geometry(case: ConvCase) -> tuple[int, ...]:
    return case.geometry[:5]


def check_forward(case: ConvCase, dtype: torch.dtype = torch.float32) -> None:
    x, weight = make_tensor(case.shape, case.layout, dtype), make_weight(case, dtype)
    expected = oracle.convolution(x, weight, case)
    output, mean, var = ops.image_conv(x, weight, True, *geometry(case))
    assert_values(output, expected, dtype, scale=magnitude(x, weight, case))
    assert_statistics(output, mean, var)
    again, mean, var = ops.image_conv(x, weight, False, *geometry(case))
    assert torch.equal(again, output)
    assert mean.shape == var.shape == (0,)


def gradient(sample: BackwardSample) -> Tensor:
    names = ("grad_output", "output", "grad_scale", "raw_scale", "raw_shift", "input", "weight")
    arguments = (sample.arguments[name] for name in names)
    result: Tensor = ops.image_conv_backward(*arguments, *geometry(sample.case))
    return result


def check_backward(case: ConvCase, dtype: torch.dtype = torch.float32, **options: bool) -> None:
    """`options` are of make_backward_sample; there is nothing before the convolution."""
    case = replace(case, activation=None)
    sample = make_backward_sample(case, dtype, prologue=False, **options)
    expected, magnitudes = sample.expected()[1], sample.expected(magnitude=True)[1]
    actual = gradient(sample)
    assert actual.is_contiguous()
    assert_totals(actual, expected, magnitudes, dtype)


@over_cases(NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_values_statistics_and_gradient(case: ConvCase, channels: int) -> None:
    case = image_case(case, channels)
    check_forward(case)
    check_backward(case)


@over_dtypes
@over_cases(FEW)
def test_every_dtype(case: ConvCase, dtype: torch.dtype) -> None:
    check_forward(image_case(case), dtype)
    check_backward(image_case(case), dtype)


@pytest.mark.parametrize("filters", [1, 5, 8, 24, 33, 150])
def test_any_number_of_filters(filters: int) -> None:
    case = image_case(case_named("stride_2_keras_odd_map"), filters=filters)
    check_forward(case)
    check_backward(case)


@pytest.mark.parametrize("channels", [2, 7, 16, 20])
def test_patches_longer_than_a_vector(channels: int) -> None:
    case = image_case(case_named("stride_2_keras_odd_map"), channels)
    check_forward(case)
    check_backward(case)


@pytest.mark.parametrize(
    "options", [{"epilogue": False}, {"raw_terms": False}], ids=["alone", "frozen_norm"]
)
@over_cases(FEW)
def test_gradient_with_less_behind_it(case: ConvCase, options: dict[str, bool]) -> None:
    check_backward(image_case(case), **options)


def test_images_of_many_tiles(threads: None) -> None:
    """Ranges of pixels begin and end within rows; the same bits for any number of threads."""
    case = ConvCase("", 5, 3, 71, 90, stride=2, padding=(0, 1, 0, 1), out_channels=24)
    check_forward(case)
    check_backward(case)
    x, weight = make_tensor(case.shape, case.layout), make_weight(case)
    sample = make_backward_sample(replace(case, activation=None), prologue=False)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append((*ops.image_conv(x, weight, True, *geometry(case)), gradient(sample)))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_every_isa(isas: list[str]) -> None:
    from test_isa_and_threads import with_isa

    for isa in isas:
        with_isa(isa, lambda: check_forward(image_case(case_named("kernel_5_stride_2"))))
        with_isa(isa, lambda: check_backward(image_case(case_named("kernel_5_stride_2"))))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_patches(value: float) -> None:
    """A patch is copied in whole vectors, past its end."""
    case = image_case(case_named("stride_2_keras_odd_map"))
    x, weight = make_tensor(case.shape), make_weight(case)
    x[0, 1, 4, 5] = value
    expected = oracle.convolution(x, weight, case)
    output = ops.image_conv(x, weight, False, *geometry(case))[0]
    assert torch.equal(output.isfinite(), expected.isfinite())
    grad = torch.zeros_like(output)
    grad[1] = 1.0  # of the other image
    actual = ops.image_conv_backward(grad, *[None] * 4, x, weight, *geometry(case))
    padded = torch.nn.functional.pad(x.double(), case.padding)
    exact = conv2d_weight(padded, weight.shape, grad.double(), case.stride)
    assert torch.equal(actual.isfinite(), exact.isfinite())


@pytest.mark.parametrize("strides", ["channels_last", "sliced"])
def test_any_weight_strides(strides: str) -> None:
    case = image_case(case_named("stride_2_keras_odd_map"))
    x, weight = make_tensor(case.shape), torch.randn(32, 3, 3, 4)[::2, :, :, :3]
    if strides == "channels_last":
        weight = weight.contiguous(memory_format=torch.channels_last)
    output = ops.image_conv(x, weight, False, *geometry(case))[0]
    assert_values(output, oracle.convolution(x, weight, case), torch.float32, scale=30.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(8, 4, 3, 3)}, r"weight must be \[F, C, K, K\] = \[F, 3, K, K\]"),
        ({"weight": torch.zeros(8, 3, 3, 5)}, r"weight must be \[F, C, K, K\].*got \[8, 3, 3, 5\]"),
        ({"weight": torch.zeros(8, 3, 3)}, r"weight must be \[F, C, K, K\].*got \[8, 3, 3\]"),
        ({"weight": torch.zeros(0, 3, 3, 3)}, r"weight must be \[F, C, K, K\]"),
        ({"weight": torch.zeros(8, 3, 3, 3).double()}, "weight must be"),
        ({"weight": torch.zeros(8, 3, 9, 9)}, "padded input must be at least as large as"),
        ({"input": torch.zeros(3, 8, 8)}, r"input must be \[N, C, H, W\], got \[3, 8, 8\]"),
        ({"stride": 0}, r"stride must be in \[1, 16777216\], got 0"),
        ({"pad_top": -1}, r"pad_top must be in \[0, 16777216\], got -1"),
    ],
    ids=str,
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"input": torch.zeros(1, 3, 8, 8), "stride": 2}
    arguments |= {"weight": torch.zeros(8, 3, 3, 3)}
    arguments |= dict.fromkeys(("pad_left", "pad_right", "pad_top", "pad_bottom"), 0)
    arguments |= changes
    with pytest.raises(RuntimeError, match=f"image_conv: {message}"):
        ops.image_conv(**arguments, statistics=False)
    grad = torch.zeros(1, 8, 3, 3)
    none = dict.fromkeys(("output", "grad_scale", "raw_scale", "raw_shift"))
    with pytest.raises(RuntimeError, match=f"image_conv_backward: {message}"):
        ops.image_conv_backward(grad_output=grad, **none, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad_output": torch.zeros(1, 8, 3, 4)}, r"grad_output must be .* = \[1, 8, 3, 3\]"),
        ({"output": torch.zeros(1, 8, 3, 3)}, "output and grad_scale must be given together"),
        ({"raw_scale": torch.zeros(8)}, "raw_scale and raw_shift must be given together"),
        (
            {"raw_scale": torch.zeros(8), "raw_shift": torch.zeros(8)},
            "output must be given with a raw_scale, got None",
        ),
    ],
    ids=str,
)
def test_bad_gradients(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"grad_output": torch.zeros(1, 8, 3, 3)}
    arguments |= dict.fromkeys(("output", "grad_scale", "raw_scale", "raw_shift"))
    arguments |= {"input": torch.zeros(1, 3, 8, 8), "weight": torch.zeros(8, 3, 3, 3), "stride": 2}
    arguments |= dict.fromkeys(("pad_left", "pad_right", "pad_top", "pad_bottom"), 0)
    with pytest.raises(RuntimeError, match=f"image_conv_backward: {message}"):
        ops.image_conv_backward(**(arguments | changes))
