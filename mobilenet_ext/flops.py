"""What the ops cost in floating-point operations, for torch.utils.flop_counter.

Only products with weights are counted, as for torch's convolutions; a multiply-add is two.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _library  # noqa: F401  (it defines the ops)


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


@register_flop_formula(torch.ops.mobilenet_ext.separable_conv)
def separable_conv_flop(
    *args: object, out_shape: tuple[Sequence[int], ...], **kwargs: object
) -> int:
    """Both convolutions."""
    depthwise_weight, pointwise_weight = args[8], args[15]
    assert isinstance(depthwise_weight, Sequence)
    assert isinstance(pointwise_weight, Sequence)
    raw = prod(out_shape[3])
    return 2 * raw * (prod(depthwise_weight[2:]) + pointwise_weight[0])


@register_flop_formula(torch.ops.mobilenet_ext.separable_conv_backward)
def separable_conv_backward_flop(*args: object, **kwargs: object) -> int:
    """Count each convolution once for each gradient that is computed."""
    raw, depthwise_weight, pointwise_weight = args[2:5]
    assert isinstance(raw, Sequence)
    assert isinstance(depthwise_weight, Sequence)
    assert isinstance(pointwise_weight, Sequence)
    need_input, need_depthwise, need_pointwise, need_bn, need_input_bn = map(bool, args[-5:])
    need_map = need_input or need_input_bn
    need_raw = need_map or need_depthwise or need_bn
    depthwise = prod(depthwise_weight[2:]) * (need_map + need_depthwise)
    return 2 * prod(raw) * (depthwise + pointwise_weight[0] * (need_raw + need_pointwise))


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
