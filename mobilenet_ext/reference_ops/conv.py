"""Depthwise and pointwise convolution and their gradients."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from ..batch_norm import vector_dtype
from ..geometry import Conv, patch_columns
from ..reference import conv2d
from .batch_norm import (
    batch_norm_statistics,
    masked,
    per_channel_sum,
    scale_shift_act,
    scale_shift_act_backward,
)


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


def image_patches(input: Tensor, kernel: int, stride: int, *padding: int) -> Tensor:
    """The values that each output pixel of a convolution reads, as a matrix; see patch_columns."""
    padded = F.pad(input, padding)
    windows = padded.unfold(2, kernel, stride).unfold(3, kernel, stride)
    patches = windows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(0, 2)
    return F.pad(patches, (0, patch_columns(kernel, input.shape[1]) - patches.shape[1]))


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


def image_conv(
    input: Tensor, weight: Tensor, statistics: bool, stride: int, *padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Dense convolution, with statistics."""
    output = F.conv2d(F.pad(input, padding), weight, stride=stride)
    return _with_epilogue(output, None, None, 0, statistics)


def image_conv_backward(
    grad_output: Tensor,
    output: Tensor | None,
    grad_scale: Tensor | None,
    raw_scale: Tensor | None,
    raw_shift: Tensor | None,
    input: Tensor,
    weight: Tensor,
    stride: int,
    *padding: int,
) -> Tensor:
    """Gradient of image_conv's weight."""
    norm = (None, None, 0, grad_scale, raw_scale, raw_shift)
    d_raw = _raw_gradient(grad_output, output, *norm)
    return conv2d_weight(F.pad(input, padding), weight.shape, d_raw, stride)


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
