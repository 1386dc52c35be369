"""Shapes, dtypes and strides of every op, for torch.compile and torch.export, and FLOP counts.

Maps come out dense in the memory format of the op's `input`. What was not asked for is an
empty tensor of shape [0].
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.library import register_fake
from torch.utils.flop_counter import register_flop_formula

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


@register_flop_formula(torch.ops.mobilenet_ext.depthwise_conv)
def depthwise_conv_flop(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *args: object,
    out_shape: tuple[Sequence[int], ...],
    **kwargs: object,
) -> int:
    """Two a tap and output value, as torch counts convolutions."""
    return 2 * prod(out_shape[0]) * prod(weight_shape[2:])


@register_flop_formula(torch.ops.mobilenet_ext.depthwise_conv_backward)
def depthwise_conv_backward_flop(
    grad_output_shape: Sequence[int], *args: object, out_shape: object = None, **kwargs: object
) -> int:
    """Count the forward once for each gradient asked for."""
    weight_shape, needs = args[8], args[-2:]
    assert isinstance(weight_shape, Sequence)
    return 2 * prod(grad_output_shape) * prod(weight_shape[2:]) * sum(map(bool, needs))


@register_flop_formula(torch.ops.mobilenet_ext.pointwise_conv)
def pointwise_conv_flop(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *args: object,
    out_shape: tuple[Sequence[int], ...],
    **kwargs: object,
) -> int:
    """Two an element of the weight and pixel."""
    return 2 * prod(out_shape[0]) * weight_shape[1]


@register_flop_formula(torch.ops.mobilenet_ext.pointwise_conv_backward)
def pointwise_conv_backward_flop(
    grad_output_shape: Sequence[int], *args: object, out_shape: object = None, **kwargs: object
) -> int:
    """Count the forward once for each gradient asked for."""
    weight_shape, needs = args[8], args[-2:]
    assert isinstance(weight_shape, Sequence)
    return 2 * prod(grad_output_shape) * weight_shape[1] * sum(map(bool, needs))


@register_flop_formula(torch.ops.mobilenet_ext.mobilenet, get_raw=True)
def mobilenet_flop(
    input: Tensor,
    weight: Tensor,
    layers: Tensor,
    outputs: int,
    has_classifier: bool,
    *args: object,
    out_val: object = None,
    **kwargs: object,
) -> int:
    """Count the convolutions and the classifier, as for the layers one by one."""
    batch, _, height, width = input.shape
    macs, channels = 0, 0
    for index, (before, channels, stride, *pads) in enumerate(layers.tolist()):
        height = (height + pads[2] + pads[3] - 3) // stride + 1
        width = (width + pads[0] + pads[1] - 3) // stride + 1
        macs += height * width * before * (9 * channels if index == 0 else 9 + channels)
    return 2 * batch * (macs + channels * outputs * has_classifier)
