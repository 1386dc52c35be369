"""batch_norm_statistics, scale_shift_act and its backward: element-wise ops and their sums."""

from dataclasses import dataclass
from typing import Any

import oracle
import pytest
import torch
from cases import (
    ACTIVATIONS,
    ConvCase,
    make_tensor,
    make_vector,
    over_cases,
    over_dtypes,
    vector_dtype,
)
from implementations import Ops
from oracle import assert_totals, assert_values, per_channel
from samples import ScaleShiftAct, make_map
from torch import Tensor

# The maps and layouts of the case table, without the geometry of a convolution.
over_maps = over_cases(
    (
        "empty_batch", "one_pixel", "odd_map", "channels_1", "channels_3", "channels_8",
        "channels_9", "channels_16", "channels_17", "channels_33", "bands", "channel_blocks",
        "wide_map", "contiguous", "mixed_layouts", "sliced", "sliced_channels", "transposed",
        "expanded_batch", "expanded_map", "expanded_all", "misaligned",
        "nchw_vectors", "nchw_vectors_of_many_images", "nchw_empty_batch", "nchw_one_pixel",
        "nchw_odd_map", "nchw_channels_1", "nchw_channels_33", "nchw_image_groups",
        "nchw_channel_blocks", "nchw_wide_map", "nchw_misaligned",
    )
)  # fmt: skip
over_activations = pytest.mark.parametrize("activation", ACTIVATIONS)
# No whole number of vectors, and one for every type on every device; of channels, of pixels.
over_vectors = pytest.mark.parametrize(
    "case",
    [
        ConvCase("21_channels", 3, 21, 9, 7),
        ConvCase("24_channels", 3, 24, 9, 7),
        ConvCase("odd_planes", 3, 5, 9, 7, layout="contiguous", grad_layout="contiguous"),
        ConvCase("even_planes", 3, 5, 6, 8, layout="contiguous", grad_layout="contiguous"),
    ],
    ids=lambda case: case.name,
)


@dataclass(frozen=True)
class Sample:
    """An input, the gradient of the activated output, and what the backward needs of BatchNorm."""

    x: Tensor
    grad: Tensor
    map: ScaleShiftAct
    mean: Tensor
    gradient_map: tuple[Tensor, Tensor, Tensor]  # grad_scale, raw_scale, raw_shift

    @property
    def vectors(self) -> tuple[Tensor, Tensor, int]:
        return self.map.scale, self.map.shift, ACTIVATIONS[self.map.activation]

    def grad_y(self) -> Tensor:
        y = self.map.before_activation(self.x)
        return oracle.masked_gradient(self.grad, y, self.map.activation)


def make_sample(case: ConvCase, dtype: torch.dtype, activation: str | None) -> Sample:
    def vector(low: float, high: float) -> Tensor:
        return make_vector(case.channels, low, high, dtype)

    return Sample(
        x=make_tensor(case.shape, case.layout, dtype),
        grad=make_tensor(case.shape, case.grad_layout, dtype),
        map=make_map(case.channels, dtype, activation),
        mean=vector(-1, 1),
        gradient_map=(vector(-2, 2), vector(-1, 1), vector(-1, 1)),
    )


def check(ops: Ops, sample: Sample) -> None:
    """Runs the three ops of a BatchNorm with activation and compares them with the oracle."""
    x, dtype = sample.x, sample.x.dtype
    assert_values(ops.scale_shift_act(x, *sample.vectors), sample.map(x), dtype, scale=20.0)
    check_sums(ops, sample)
    grad_scale, raw_scale, raw_shift = sample.gradient_map
    actual = ops.scale_shift_act_backward(sample.grad, x, *sample.vectors, *sample.gradient_map)
    expected = per_channel(grad_scale) * sample.grad_y()
    expected = expected + per_channel(raw_scale) * x.double() + per_channel(raw_shift)
    assert_values(actual, expected, dtype, scale=10.0)


def check_sums(ops: Ops, sample: Sample) -> None:
    x = sample.x
    totals = ops.scale_shift_act_backward_reduce(sample.grad, x, *sample.vectors, sample.mean)
    grad_y, centred = sample.grad_y(), x.double() - per_channel(sample.mean)
    for total, terms in zip(totals, (grad_y, grad_y * centred), strict=True):
        expected, magnitude = terms.sum((0, 2, 3)), terms.abs().sum((0, 2, 3))
        assert_totals(total, expected, magnitude, vector_dtype(x.dtype))


@over_maps
def test_scale_shift_act_and_its_backward(ops: Ops, case: ConvCase) -> None:
    check(ops, make_sample(case, torch.float32, case.activation))


@over_dtypes
@over_activations
@over_vectors
def test_every_dtype_and_activation(
    ops: Ops, dtype: torch.dtype, activation: str | None, case: ConvCase
) -> None:
    check(ops, make_sample(case, dtype, activation))


@pytest.mark.parametrize("misaligned", ["layout", "grad_layout"])
def test_vectors_of_channels_at_any_address(ops: Ops, misaligned: str) -> None:
    case = ConvCase("", 2, 16, 6, 7, **{misaligned: "misaligned"})
    check(ops, make_sample(case, torch.float32, "relu6"))
    check_statistics(ops, make_tensor(case.shape, case.layout))


def test_backward_without_raw_terms(ops: Ops) -> None:
    """Frozen BatchNorm: the statistics are constants."""
    sample = make_sample(ConvCase("", 2, 9, 5, 4), torch.float32, "relu6")
    grad_scale = sample.gradient_map[0]
    actual = ops.scale_shift_act_backward(
        sample.grad, sample.x, *sample.vectors, grad_scale, None, None
    )
    expected = per_channel(grad_scale) * sample.grad_y()
    assert_values(actual, expected, torch.float32)


def test_backward_without_activation(ops: Ops) -> None:
    """Plain BatchNorm: scale and shift are not needed to know where the gradient passes."""
    sample = make_sample(ConvCase("", 2, 9, 5, 4), torch.float32, None)
    actual = ops.scale_shift_act_backward(
        sample.grad, sample.x, None, None, 0, *sample.gradient_map
    )
    expected = ops.scale_shift_act_backward(
        sample.grad, sample.x, *sample.vectors, *sample.gradient_map
    )
    torch.testing.assert_close(actual, expected)
    a, b, c = map(per_channel, sample.gradient_map)
    assert_values(actual, a * sample.grad + b * sample.x + c, torch.float32, scale=10.0)


def test_kinks_and_nan(ops: Ops) -> None:
    """Values as torch clips them; the gradient is zero at 0 and at 6 and passes where NaN is."""
    values = torch.tensor([0.0, -0.0, 6.0, 6.5, -1.0, 3.0, torch.nan, torch.inf, -torch.inf])
    x = values.view(1, 1, 1, 9).expand(1, 17, 1, 9).contiguous()
    ones, zeros = torch.ones(17), torch.zeros(17)
    grad = torch.full_like(x, 2.0)
    for activation, passes in (("relu", [0, 0, 1, 1, 0, 1, 1, 1, 0]),
                               ("relu6", [0, 0, 0, 0, 0, 1, 1, 0, 0])):  # fmt: skip
        code = ACTIVATIONS[activation]
        output = ops.scale_shift_act(x, ones, zeros, code)
        torch.testing.assert_close(
            output, oracle.activate(x, activation), rtol=0, atol=0, equal_nan=True
        )
        grad_input = ops.scale_shift_act_backward(grad, x, ones, zeros, code, ones, None, None)
        assert torch.equal(grad_input, 2.0 * torch.tensor(passes).expand(1, 17, 1, 9))


@over_maps
def test_statistics(ops: Ops, case: ConvCase) -> None:
    check_statistics(ops, make_tensor(case.shape, case.layout))


@over_dtypes
@over_vectors
def test_statistics_of_every_dtype(ops: Ops, dtype: torch.dtype, case: ConvCase) -> None:
    shape = (case.batch, case.channels, 4 * case.height, 3 * case.width)
    check_statistics(ops, make_tensor(shape, case.layout, dtype))


def check_statistics(ops: Ops, x: Tensor, rtol: float | None = None) -> None:
    mean, var = ops.batch_norm_statistics(x)
    dtype = vector_dtype(x.dtype)
    assert mean.dtype == var.dtype == dtype
    assert mean.shape == var.shape == x.shape[1:2]
    if not x.numel():
        assert mean.isnan().all()
        assert var.isnan().all()
        return
    stored = x.double()
    expected_mean, expected_var = stored.mean((0, 2, 3)), stored.var((0, 2, 3), correction=0)
    assert_values(mean, expected_mean, dtype, scale=stored.abs().max().item())
    # Squares of some thousand pixels are added up one by one: roundings do not always cancel.
    rtol = rtol or (1e-12 if dtype == torch.float64 else 2e-6)
    torch.testing.assert_close(var.double(), expected_var, rtol=rtol, atol=rtol * 1e-6)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_sums_of_more_pixels_than_threads(ops: Ops, layout: str) -> None:
    """The CUDA threads of a launch go round several times."""
    case = ConvCase("", 1, 1, 900, 900, layout=layout, grad_layout=layout)
    check_sums(ops, make_sample(case, torch.float32, "relu6"))
    check_statistics(ops, make_tensor(case.shape, layout))


def spread(shape: tuple[int, ...]) -> Tensor:
    """Normal values rounded to multiples of 2^-6, so that large offsets keep them exact."""
    return (torch.randn(shape) * 64).round() / 64


def test_statistics_far_from_zero(ops: Ops) -> None:
    """The mean is 10,000 standard deviations away, with either sign."""
    sign = torch.tensor([1.0, -1.0, 0.0]).repeat(6)[:17].view(1, 17, 1, 1)
    check_statistics(ops, spread((4, 17, 32, 32)) + 10_000 * sign, rtol=1e-4)


@pytest.mark.parametrize("where", ["first", "last"])
def test_statistics_with_one_outlier(ops: Ops, where: str) -> None:
    """A shift taken from one pixel must not spoil the sums when that pixel is the odd one out.

    The variance is some 1.4; squares of a distance of 30 cost it two digits.
    """
    x = spread((2, 17, 32, 32))
    position = 0 if where == "first" else -1
    x[position, :, position, position] = 30.0
    check_statistics(ops, x.contiguous(memory_format=torch.channels_last), rtol=1e-4)


def test_statistics_of_images_at_different_levels(ops: Ops) -> None:
    """Partial results of different means are merged."""
    level = torch.tensor([0.0, 100.0, -300.0, 5000.0, 5000.0, 0.0, 1.0]).view(7, 1, 1, 1)
    check_statistics(ops, spread((7, 24, 40, 37)) + level, rtol=1e-5)


def test_statistics_of_a_constant(ops: Ops) -> None:
    """The variance of a constant is a true zero, never negative and never noise."""
    x = torch.tensor([0.1, -3e4, 1e-20]).repeat(6).view(1, 18, 1, 1).repeat(3, 1, 17, 19)
    mean, var = ops.batch_norm_statistics(x)
    torch.testing.assert_close(mean, x[0, :, 0, 0], rtol=1e-6, atol=0)
    assert (var >= 0).all()
    assert (var <= 1e-12 * mean**2 + 1e-30).all()


def test_statistics_keep_nan_and_infinity_in_their_channel(ops: Ops) -> None:
    x = make_tensor((2, 17, 5, 6))
    x[1, 16, 2, 2] = torch.nan
    x[0, 3, 0, 0] = torch.inf
    mean, var = ops.batch_norm_statistics(x)
    spoiled = torch.zeros(17, dtype=torch.bool)
    spoiled[[3, 16]] = True
    assert torch.equal(mean.isfinite(), ~spoiled)
    assert torch.equal(var.isfinite(), ~spoiled)


def test_arguments_are_left_alone(ops: Ops) -> None:
    sample = make_sample(ConvCase("", 2, 17, 5, 4, layout="misaligned"), torch.float32, "relu6")
    arguments: dict[str, Any] = {"x": sample.x, "grad": sample.grad, "mean": sample.mean}
    before = {name: value.clone() for name, value in arguments.items()}
    check(ops, sample)
    ops.batch_norm_statistics(sample.x)
    for name, value in before.items():
        assert torch.equal(arguments[name], value), name
