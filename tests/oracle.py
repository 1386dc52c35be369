"""What the ops must compute, in float64 and stock PyTorch, and how close they must come.

Written from the definitions, apart from `mobilenet_ext.reference` (which the tests check against
this file). Everything is differentiable: gradients come from autograd.
"""

import torch
import torch.nn.functional as F
from cases import TOLERANCES, ConvCase
from torch import Tensor

from mobilenet_ext.functional import BatchNorm


def per_channel(vector: Tensor) -> Tensor:
    """[C] -> [1, C, 1, 1] in float64."""
    return vector.double().view(1, -1, 1, 1)


def activate(y: Tensor, activation: str | None) -> Tensor:
    return {None: lambda y: y, "relu": F.relu, "relu6": F.relu6}[activation](y)


def scale_shift_act(x: Tensor, scale: Tensor, shift: Tensor, activation: str | None) -> Tensor:
    return activate(x.double() * per_channel(scale) + per_channel(shift), activation)


def convolution(z: Tensor, weight: Tensor, case: ConvCase) -> Tensor:
    """The raw convolution of `z` [N, C, H, W], padded with zeros."""
    padded = F.pad(z.double(), case.padding)
    return F.conv2d(
        padded,
        weight.double(),
        stride=case.stride,
        dilation=case.dilation,
        groups=1 if case.out_channels else weight.shape[0],
    )


def masked_gradient(grad: Tensor, y: Tensor, activation: str | None) -> Tensor:
    """The gradient `grad` of `activate(y)` carried back to y: zero at and beyond the kinks.

    NaN lets it through; torch's own relu6 does so in its scalar code and not in its vector code.
    """
    grad = grad.double()
    if activation is not None:
        grad = torch.where(y <= 0, 0.0, grad)
    if activation == "relu6":
        grad = torch.where(y >= 6, 0.0, grad)
    return grad


def batch_norm_act(x: Tensor, bn: BatchNorm) -> Tensor:
    """BatchNorm, with the statistics of the batch when training, then the activation."""
    gamma, beta = (None if v is None else v.double() for v in (bn.weight, bn.bias))
    mean, var = (None if v is None else v.double() for v in (bn.running_mean, bn.running_var))
    if bn.training:
        mean = var = None
    y = F.batch_norm(x.double(), mean, var, gamma, beta, training=bn.training, eps=bn.eps)
    return activate(y, bn.activation)


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` after a round trip through memory as `dtype`; the gradient passes as if exact."""
    return x + (x.to(dtype).double() - x).detach()


def unit(
    x: Tensor, input_bn: BatchNorm | None, weight: Tensor, bn: BatchNorm, case: ConvCase
) -> Tensor:
    """act(bn(conv(act(input_bn(x))))), its raw convolution output stored in the dtype of `x`.

    That rounding has to be followed: it decides on which side of a kink a value near it falls.
    """
    z = batch_norm_act(x, input_bn) if input_bn else x
    return batch_norm_act(stored(convolution(z, weight, case), x.dtype), bn)


def block(
    x: Tensor,
    input_bn: BatchNorm,
    weight: Tensor,
    bn: BatchNorm,
    pointwise_weight: Tensor,
    case: ConvCase,
) -> Tensor:
    """pointwise(act(bn(depthwise(act(input_bn(x)))))), raw outputs stored likewise."""
    z = unit(x, input_bn, weight, bn, case)
    return F.conv2d(z, pointwise_weight.double())


def assert_values(
    actual: Tensor,
    expected: Tensor,
    dtype: torch.dtype,
    *,
    scale: float = 0.0,
    roundings: int = 1,
) -> None:
    """Elements that must be stored as `dtype` and be right up to its rounding.

    `scale`: the magnitude that they are made of, if larger than the largest of them; `roundings`:
    how many times a result has been stored as `dtype` on the way to this one.
    """
    assert actual.dtype == dtype, f"expected {dtype}, got {actual.dtype}"
    assert actual.shape == expected.shape, f"expected {expected.shape}, got {actual.shape}"
    tolerance = TOLERANCES[dtype]
    finite = expected[expected.isfinite()].abs()
    largest = max(scale, finite.max().item() if finite.numel() else 0.0)
    relative = (roundings - 1) * tolerance.rounding + tolerance.arithmetic
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        rtol=roundings * tolerance.rounding,
        atol=relative * largest,
        equal_nan=True,
    )


def assert_totals(
    actual: Tensor,
    expected: Tensor,
    magnitude: Tensor,
    dtype: torch.dtype,
    *,
    terms: torch.dtype | None = None,
) -> None:
    """Sums over whole channels that must be stored as `dtype`.

    `magnitude`: the sums of the terms' magnitudes; `terms`: the dtype to which terms may have been
    rounded, if not those of the arithmetic.
    """
    assert actual.dtype == dtype, f"expected {dtype}, got {actual.dtype}"
    assert actual.shape == expected.shape, f"expected {expected.shape}, got {actual.shape}"
    tolerance = TOLERANCES[dtype]
    relative = tolerance.arithmetic + (TOLERANCES[terms].rounding if terms else 0.0)
    allowed = relative * magnitude + tolerance.rounding * expected.abs()
    error = (actual.double() - expected).abs()
    excess = (error > allowed) | error.isnan()
    assert not excess.any(), f"error {error[excess]}, allowed {allowed[excess]}"
