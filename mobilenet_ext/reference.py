"""The same functions in stock PyTorch: the specification, the tests' oracle, and the fallback.

First the public functions, as anybody would write them; then the ops, which are the pieces that
the kernels compute. Tensors are [N, C, H, W], vectors [C]. Convolutions run in the input's dtype,
everything about BatchNorm in float32 (float64 for float64), and any depth multiplier is taken.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from . import packing
from .batch_norm import ACTIVATIONS, BatchNorm, vector_dtype
from .geometry import Conv, Padding, conv_geometry

NONE, RELU, RELU6 = ACTIVATIONS.values()


def depthwise_conv_bn_relu(
    input: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    stride: int = 1,
    padding: Padding = 1,
    dilation: int = 1,
    **bn_options: Any,
) -> Tensor:
    """act(batch_norm(depthwise_conv(input)))."""
    raw = conv2d(input, weight, conv_geometry(input, weight.shape[2], stride, padding, dilation))
    return bn_relu(raw, bn_weight, bn_bias, running_mean, running_var, **bn_options)


def bn_relu_depthwise_conv_bn_relu(
    input: Tensor,
    input_bn: BatchNorm | None,
    weight: Tensor,
    bn: BatchNorm,
    *,
    stride: int = 1,
    padding: Padding = 1,
    dilation: int = 1,
) -> Tensor:
    """act(bn(depthwise_conv(act(input_bn(input))))); without input_bn the input is taken as is."""
    z = input if input_bn is None else bn_relu(input, **input_bn.arguments)
    raw = conv2d(z, weight, conv_geometry(z, weight.shape[2], stride, padding, dilation))
    return bn_relu(raw, **bn.arguments)


def bn_relu(
    input: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | None = "relu6",
) -> Tensor:
    """act(batch_norm(input)), moving the running statistics when training."""
    y = F.batch_norm(input, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    return activate(y, ACTIVATIONS[activation])


def activate(x: Tensor, activation: int) -> Tensor:
    """Nothing, max(x, 0), or min(max(x, 0), 6); NaN stays NaN."""
    return {NONE: lambda x: x, RELU: F.relu, RELU6: F.relu6}[activation](x)


def conv2d(input: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """Depthwise convolution; weight [C * multiplier, 1, K, K]."""
    padded = F.pad(input, conv.padding)
    groups = input.shape[1]
    return F.conv2d(padded, weight, None, conv.stride, 0, conv.dilation, groups)


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
    mean = var = output.new_empty(0, dtype=vector_dtype(output))
    if statistics:
        mean, var = batch_norm_statistics(output)
    elif output_scale is not None and output_shift is not None:
        output = scale_shift_act(output, output_scale, output_shift, output_activation)
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
    d_raw = grad_output
    if output is not None and grad_scale is not None:
        d_raw = scale_shift_act_backward(
            grad_output,
            output,
            output_scale,
            output_shift,
            output_activation,
            grad_scale,
            raw_scale,
            raw_shift,
        )
    z = input
    if input_scale is not None and input_shift is not None:
        z = scale_shift_act(input, input_scale, input_shift, input_activation)
    conv = Conv(*geometry)
    padded, options = F.pad(z, conv.padding), (conv.stride, 0, conv.dilation, z.shape[1])
    grad_padded = conv2d_input(padded.shape, weight, d_raw, *options)
    grad_weight = conv2d_weight(padded, weight.shape, d_raw, *options)
    grad_z = F.pad(grad_padded, [-pad for pad in conv.padding])
    grad_input = masked(grad_z, input, input_scale, input_shift, input_activation)
    nothing = grad_input.new_empty(0)
    grad_sum = grad_dot = nothing
    if input_mean is not None:
        grad_sum = per_channel_sum(grad_input)
        grad_dot = per_channel_sum(grad_input * (input - input_mean[:, None, None]))
    return (
        grad_input.to(input.dtype) if need_grad_input else nothing.to(input.dtype),
        grad_weight if need_grad_weight else nothing.to(input.dtype),
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
