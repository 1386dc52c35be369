"""Shapes, dtypes and strides of every op, for torch.compile and torch.export.

Maps come out dense in the memory format of the op's `input`. What was not asked for is an
empty tensor of shape [0].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.library import register_fake

from . import _library  # noqa: F401  (it defines the ops)
from .batch_norm import vector_dtype


def _map(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Allocate a dense [N, C, H, W] in the memory format of `like`."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=suggest_memory_format(like)
    )


def _vector(like: Tensor, channels: int) -> Tensor:
    """Allocate a per-channel vector."""
    return like.new_empty(channels, dtype=vector_dtype(like))


@register_fake("mobilenet_ext::depthwise_conv")
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
    stride: int,
    pad_left: int,
    pad_right: int,
    pad_top: int,
    pad_bottom: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = input.shape
    reach = dilation * (weight.shape[2] - 1) + 1
    out_height = (height + pad_top + pad_bottom - reach) // stride + 1
    out_width = (width + pad_left + pad_right - reach) // stride + 1
    count = channels if statistics else 0
    return (
        _map(input, (batch, channels, out_height, out_width)),
        _vector(input, count),
        _vector(input, count),
    )


@register_fake("mobilenet_ext::depthwise_conv_backward")
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
    stride: int,
    pad_left: int,
    pad_right: int,
    pad_top: int,
    pad_bottom: int,
    dilation: int,
    need_grad_input: bool,
    need_grad_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = 0 if input_mean is None else input.shape[1]
    return (
        _map(input, input.shape) if need_grad_input else input.new_empty(0),
        weight.new_empty(weight.shape if need_grad_weight else 0),
        _vector(input, count),
        _vector(input, count),
    )


@register_fake("mobilenet_ext::pointwise_conv")
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
    batch, _, height, width = input.shape
    count = weight.shape[0] if statistics else 0
    return (
        _map(input, (batch, weight.shape[0], height, width)),
        _vector(input, count),
        _vector(input, count),
    )


@register_fake("mobilenet_ext::pointwise_conv_backward")
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
    count = 0 if input_mean is None else input.shape[1]
    return (
        _map(input, input.shape) if need_grad_input else input.new_empty(0),
        weight.new_empty(weight.shape if need_grad_weight else 0),
        _vector(input, count),
        _vector(input, count),
    )


@register_fake("mobilenet_ext::separable_conv")
def separable_conv(
    input: Tensor,
    input_mean: Tensor,
    input_var: Tensor,
    input_bn_weight: Tensor | None,
    input_bn_bias: Tensor | None,
    input_eps: float,
    input_activation: int,
    input_of_batch: bool,
    depthwise_weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    eps: float,
    activation: int,
    pointwise_weight: Tensor,
    statistics: bool,
    *geometry: int,
) -> tuple[Tensor, ...]:
    of_batch, nothing = running_mean is None, (None, None, 0)
    raw, mean, _ = depthwise_conv(input, depthwise_weight, *nothing, *nothing, of_batch, *geometry)
    output = pointwise_conv(raw, pointwise_weight, *nothing, *nothing, statistics)
    channels = raw.shape[1]
    scale, shift, invstd = (_vector(raw, channels) for _ in range(3))
    unbiased_var = _vector(raw, channels if of_batch else 0)
    of_input = [_vector(input, channels) for _ in range(3)]
    of_input.append(_vector(input, channels if input_of_batch else 0))
    return *output, raw, scale, shift, mean, invstd, unbiased_var, *of_input


@register_fake("mobilenet_ext::separable_conv_backward")
def separable_conv_backward(
    grad_output: Tensor,
    input: Tensor,
    raw: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    invstd: Tensor,
    activation: int,
    of_batch: bool,
    input_scale: Tensor,
    input_shift: Tensor,
    input_mean: Tensor,
    input_invstd: Tensor,
    input_activation: int,
    input_of_batch: bool,
    stride: int,
    pad_left: int,
    pad_right: int,
    pad_top: int,
    pad_bottom: int,
    dilation: int,
    need_input: bool,
    need_depthwise_weight: bool,
    need_pointwise_weight: bool,
    need_bn: bool,
    need_input_bn: bool,
) -> tuple[Tensor, ...]:
    need_map = need_input or need_input_bn
    need_sums = need_bn or (of_batch and (need_map or need_depthwise_weight))
    channels = input.shape[1]
    sums = [_vector(input, channels if needed else 0) for needed in (need_sums, need_map) * 2]
    return (
        _map(input, input.shape) if need_input else input.new_empty(0),
        input.new_empty(depthwise_weight.shape if need_depthwise_weight else 0),
        input.new_empty(pointwise_weight.shape if need_pointwise_weight else 0),
        *(sums[0], sums[2]),
        *(sums[1], sums[3]),
    )


@register_fake("mobilenet_ext::batch_norm_statistics")
def batch_norm_statistics(input: Tensor) -> tuple[Tensor, Tensor]:
    return _vector(input, input.shape[1]), _vector(input, input.shape[1])


@register_fake("mobilenet_ext::scale_shift_act")
def scale_shift_act(input: Tensor, scale: Tensor, shift: Tensor, activation: int) -> Tensor:
    return _map(input, input.shape)


@register_fake("mobilenet_ext::scale_shift_act_backward_reduce")
def scale_shift_act_backward_reduce(
    grad_output: Tensor, input: Tensor, scale: Tensor, shift: Tensor, activation: int, mean: Tensor
) -> tuple[Tensor, Tensor]:
    return _vector(input, input.shape[1]), _vector(input, input.shape[1])


@register_fake("mobilenet_ext::scale_shift_act_backward")
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
    return _map(input, input.shape)


@register_fake("mobilenet_ext::batch_norm_affine")
def batch_norm_affine(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scale, shift, invstd = (mean.new_empty(mean.shape) for _ in range(3))
    return scale, shift, invstd, mean.new_empty(mean.shape if count else 0)


@register_fake("mobilenet_ext::batch_norm_gradient_map")
def batch_norm_gradient_map(
    grad_sum: Tensor, grad_dot: Tensor, scale: Tensor, mean: Tensor, invstd: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    grad_weight, raw_scale, raw_shift = (grad_sum.new_empty(grad_sum.shape) for _ in range(3))
    return grad_weight, raw_scale, raw_shift


@register_fake("mobilenet_ext::mobilenet")
def mobilenet(
    input: Tensor,
    weight: Tensor,
    layers: Tensor,
    outputs: int,
    has_classifier: bool,
    activation: int,
) -> Tensor:
    return input.new_empty(input.shape[0], outputs)
