"""batch_norm_affine and batch_norm_gradient_map: BatchNorm's formulas on vectors."""

import pytest
import torch
from cases import make_vector
from implementations import Ops
from oracle import assert_values
from torch import Tensor

EPS = 1e-3

over_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# One, a vector and a bit, and more than a CUDA thread block has threads.
over_channels = pytest.mark.parametrize("channels", [1, 17, 300])


def batch_norm(raw: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Of [values, C] in float64, by its definition."""
    y = (raw - raw.mean(0)) / (raw.var(0, correction=0) + EPS).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@over_dtypes
@over_channels
@pytest.mark.parametrize("parameters", ["both", "weight", "bias", "none"])
def test_affine_is_the_normalisation(
    ops: Ops, dtype: torch.dtype, channels: int, parameters: str
) -> None:
    """Scale * raw + shift is BatchNorm, and the variance is that of a sample."""
    raw = torch.randn(23, channels, dtype=torch.float64) * 3 + 1
    weight, bias = make_vector(channels, -2, 2, dtype), make_vector(channels, -2, 2, dtype)
    given = (
        weight if parameters in ("both", "weight") else None,
        bias if parameters in ("both", "bias") else None,
    )
    mean, var = raw.mean(0).to(dtype), raw.var(0, correction=0).to(dtype)
    scale, shift, invstd, unbiased_var = ops.batch_norm_affine(mean, var, *given, EPS, len(raw))
    assert scale.dtype == shift.dtype == dtype
    expected = batch_norm(raw, *(x if x is None else x.double() for x in given))
    assert_values((scale.double() * raw + shift.double()).to(dtype), expected, dtype, scale=20.0)
    assert_values(invstd, 1 / (raw.var(0, correction=0) + EPS).sqrt(), dtype)
    assert_values(unbiased_var, raw.var(0), dtype, scale=20.0)


def test_without_an_unbiased_variance(ops: Ops) -> None:
    mean, var = make_vector(9, -1, 1, torch.float32), make_vector(9, 0, 1, torch.float32)
    *_, unbiased_var = ops.batch_norm_affine(mean, var, None, None, EPS, 0)
    assert unbiased_var.shape == (0,)


@over_dtypes
@over_channels
def test_gradient_map_is_the_backward(ops: Ops, dtype: torch.dtype, channels: int) -> None:
    """Against autograd through BatchNorm's definition, in float64."""
    raw = (torch.randn(23, channels, dtype=torch.float64) * 3 + 1).requires_grad_()
    weight = make_vector(channels, -2, 2, torch.float64).requires_grad_()
    dy = torch.randn(23, channels, dtype=torch.float64)
    grad_raw, grad_weight = torch.autograd.grad(batch_norm(raw, weight, None), (raw, weight), dy)

    raw, weight = raw.detach(), weight.detach()
    mean, invstd = raw.mean(0), 1 / (raw.var(0, correction=0) + EPS).sqrt()
    sums = (dy.sum(0), (dy * (raw - mean)).sum(0))
    vectors = (x.to(dtype) for x in (*sums, weight * invstd, mean, invstd))
    actual, raw_scale, raw_shift = ops.batch_norm_gradient_map(*vectors, len(raw))
    assert_values(actual, grad_weight, dtype, scale=60.0)
    assert raw_scale.dtype == raw_shift.dtype == dtype
    mapped = weight * invstd * dy + raw_scale.double() * raw + raw_shift.double()
    assert_values(mapped.to(dtype), grad_raw, dtype, scale=20.0)
