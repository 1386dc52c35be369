"""The ops in stock PyTorch: the specification of the kernels.

Tensors are [N, C, H, W], vectors [C]. Convolutions run in the input's dtype, everything about
BatchNorm in float32 (float64 for float64).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from . import packing
from .batch_norm import vector_dtype
from .geometry import Conv
from .reference import NONE, RELU6, activate, conv2d


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


def depthwise_conv(
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor | None,
    input_shift: Tensor | None,
    input_activation: int,
    output_scale: Tensor | None,
    output_shift: Tensor | None,
    output_activation: int,
    statistics: bool,
    *geometry: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Depthwise convolution with a prologue on its input and an epilogue or statistics."""
    if input_scale is not None and input_shift is not None:
        input = scale_shift_act(input, input_scale, input_shift, input_activation)
    output = conv2d(input, weight, Conv(*geometry))
    return _with_epilogue(output, output_scale, output_shift, output_activation, statistics)


def pointwise_conv(
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor | None,
    input_shift: Tensor | None,
    input_activation: int,
    output_scale: Tensor | None,
    output_shift: Tensor | None,
    output_activation: int,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """1 x 1 convolution with a prologue on its input and an epilogue or statistics."""
    if input_scale is not None and input_shift is not None:
        input = scale_shift_act(input, input_scale, input_shift, input_activation)
    return _with_epilogue(
        F.conv2d(input, weight), output_scale, output_shift, output_activation, statistics
    )


def _with_epilogue(
    output: Tensor, scale: Tensor | None, shift: Tensor | None, activation: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor]:
    mean = var = output.new_empty(0, dtype=vector_dtype(output))
    if statistics:
        mean, var = batch_norm_statistics(output)
    elif scale is not None and shift is not None:
        output = scale_shift_act(output, scale, shift, activation)
    return output, mean, var


def depthwise_conv_backward(
    grad_output: Tensor,
    output: Tensor | None,
    output_scale: Tensor | None,
    output_shift: Tensor | None,
    output_activation: int,
    grad_scale: Tensor | None,
    raw_scale: Tensor | None,
    raw_shift: Tensor | None,
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor | None,
    input_shift: Tensor | None,
    input_mean: Tensor | None,
    input_activation: int,
    *geometry_and_needs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of depthwise_conv: its input normalised but not activated, and its weight."""
    *geometry, need_grad_input, need_grad_weight = geometry_and_needs
    after = (output, output_scale, output_shift, output_activation)
    d_raw = _raw_gradient(grad_output, *after, grad_scale, raw_scale, raw_shift)
    before = (input_scale, input_shift, input_activation)
    needs = (need_grad_input, need_grad_weight)
    return _conv_backward(d_raw, input, weight, *before, input_mean, Conv(*geometry), needs)


def pointwise_conv_backward(
    grad_output: Tensor,
    output: Tensor | None,
    output_scale: Tensor | None,
    output_shift: Tensor | None,
    output_activation: int,
    grad_scale: Tensor | None,
    raw_scale: Tensor | None,
    raw_shift: Tensor | None,
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor | None,
    input_shift: Tensor | None,
    input_mean: Tensor | None,
    input_activation: int,
    need_grad_input: bool,
    need_grad_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of pointwise_conv: its input normalised but not activated, and its weight."""
    after = (output, output_scale, output_shift, output_activation)
    d_raw = _raw_gradient(grad_output, *after, grad_scale, raw_scale, raw_shift)
    before = (input_scale, input_shift, input_activation)
    needs = (need_grad_input, need_grad_weight)
    everywhere = Conv(1, 0, 0, 0, 0, 1)
    return _conv_backward(d_raw, input, weight, *before, input_mean, everywhere, needs, groups=1)


def _raw_gradient(grad_output: Tensor, output: Tensor | None, *vectors: Any) -> Tensor:
    """Gradient of a convolution's raw output."""
    if output is None:
        return grad_output
    return scale_shift_act_backward(grad_output, output, *vectors)


def _conv_backward(
    d_raw: Tensor,
    input: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: int,
    mean: Tensor | None,
    conv: Conv,
    needs: tuple[int, int],
    groups: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = input
    if scale is not None and shift is not None:
        z = scale_shift_act(input, scale, shift, activation)
    padded, options = F.pad(z, conv.padding), (conv.stride, 0, conv.dilation)
    groups = groups or z.shape[1]
    grad_padded = conv2d_input(padded.shape, weight, d_raw, *options, groups)
    grad_weight = conv2d_weight(padded, weight.shape, d_raw, *options, groups)
    grad_z = F.pad(grad_padded, [-pad for pad in conv.padding])
    grad_input = masked(grad_z, input, scale, shift, activation)
    nothing = grad_input.new_empty(0)
    grad_sum = grad_dot = nothing
    if mean is not None:
        grad_sum = per_channel_sum(grad_input)
        grad_dot = per_channel_sum(grad_input * (input - mean[:, None, None]))
    return (
        grad_input.to(input.dtype) if needs[0] else nothing.to(input.dtype),
        grad_weight if needs[1] else nothing.to(input.dtype),
        grad_sum,
        grad_dot,
    )


def mobilenet(
    input: Tensor,
    weight: Tensor,
    layers: Tensor,
    outputs: int,
    has_classifier: bool,
    activation: int,
) -> Tensor:
    """A stem and separable blocks with BatchNorm folded in, average pooling, a classifier.

    Args:
        input: [N, C, H, W].
        weight: all weights and biases, packed one after the other as packing.py has it.
        layers: [L, 7], int64; the stem, then the blocks: channels in and out, stride of the 3x3
            convolution, its padding at the left, right, top and bottom.
        outputs: size of the result.
        has_classifier: otherwise the pooled features are the result.
        activation: after every convolution.

    Returns:
        [N, outputs].
    """
    x, rest = input, weight
    for index, (channels, filters, stride, *padding) in enumerate(layers.tolist()):
        if index == 0:
            matrix, bias, rest = packing.unpack_matrix(rest, filters, 9 * channels)
            kernel = matrix.reshape(filters, 3, 3, channels).permute(0, 3, 1, 2)
            x = activate(F.conv2d(F.pad(x, padding), kernel, bias, stride), activation)
            continue
        kernel, bias, rest = packing.unpack_depthwise(rest, channels)
        x = F.conv2d(F.pad(x, padding), kernel, bias, stride, groups=channels)
        matrix, bias, rest = packing.unpack_matrix(rest, filters, channels)
        x = activate(F.conv2d(activate(x, activation), matrix[:, :, None, None], bias), activation)
    pooled = x.mean((2, 3))
    if not has_classifier:
        return pooled
    matrix, bias, _ = packing.unpack_matrix(rest, outputs, pooled.shape[1])
    return F.linear(pooled, matrix, bias)
