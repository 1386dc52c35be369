"""The ops on maps and vectors without a convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch_norm import vector_dtype
from ..reference import NONE, RELU6, activate


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale * x + shift in the vectors' dtype."""
    return x * scale[:, None, None] + shift[:, None, None]


def per_channel_sum(x: Tensor) -> Tensor:
    """Sum over batch and map."""
    return x.sum((0, 2, 3))


def masked(
    grad: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: int
) -> Tensor:
    """Gradient of y = scale * x + shift, given act(y)'s: zero where the activation is flat."""
    grad = grad.to(vector_dtype(x))
    if scale is None or shift is None or activation == NONE:
        return grad
    y = affine(x, scale, shift)
    flat = y <= 0
    if activation == RELU6:
        flat = flat | (y >= 6)
    return grad.masked_fill(flat, 0)


def batch_norm_statistics(input: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel."""
    input = input.to(vector_dtype(input))
    mean = input.mean((0, 2, 3))
    return mean, (input - mean[:, None, None]).square().mean((0, 2, 3))


def scale_shift_act(input: Tensor, scale: Tensor, shift: Tensor, activation: int) -> Tensor:
    """act(scale * input + shift)."""
    return activate(affine(input, scale, shift), activation).to(input.dtype)


def scale_shift_act_backward_reduce(
    grad_output: Tensor, input: Tensor, scale: Tensor, shift: Tensor, activation: int, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of dy and of dy * (input - mean), dy the gradient of scale * input + shift."""
    dy = masked(grad_output, input, scale, shift, activation)
    return per_channel_sum(dy), per_channel_sum(dy * (input - mean[:, None, None]))


def scale_shift_act_backward(
    grad_output: Tensor,
    input: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: int,
    grad_scale: Tensor,
    raw_scale: Tensor | None,
    raw_shift: Tensor | None,
) -> Tensor:
    """grad_scale * dy + raw_scale * input + raw_shift: the gradient of a BatchNorm's input."""
    dy = masked(grad_output, input, scale, shift, activation)
    grad_input = dy * grad_scale[:, None, None]
    if raw_scale is not None and raw_shift is not None:
        grad_input = grad_input + affine(input, raw_scale, raw_shift)
    return grad_input.to(input.dtype)


def batch_norm_affine(
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    count: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale, shift and invstd from statistics; the unbiased variance of `count` values if not 0."""
    invstd = torch.rsqrt(var + eps)
    scale = invstd if weight is None else invstd * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    unbiased_var = var * (count / (count - 1)) if count else var.new_empty(0)
    return scale, shift, invstd, unbiased_var


def batch_norm_gradient_map(
    grad_sum: Tensor,
    grad_dot: Tensor,
    scale: Tensor,
    mean: Tensor,
    invstd: Tensor,
    count: int | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the weight, and the terms of d_raw = scale * dy + raw_scale * raw + raw_shift."""
    grad_weight = grad_dot * invstd
    raw_scale = -scale * grad_weight * invstd / count
    return grad_weight, raw_scale, -scale * grad_sum / count - raw_scale * mean
