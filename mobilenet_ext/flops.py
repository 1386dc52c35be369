"""What the ops cost in floating-point operations, for torch.utils.flop_counter.

Only products with weights are counted, as for torch's convolutions; a multiply-add is two.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _library  # noqa: F401  (it defines the ops)
from .chain_layout import block_results, block_tensors
from .geometry import conv_geometry, padding_rule


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


@register_flop_formula(torch.ops.mobilenet_ext.separable_convs, get_raw=True)
def separable_convs_flop(*args: Any, out_val: Sequence[Tensor], **kwargs: object) -> int:
    """Both convolutions of each block."""
    pairs = zip(block_results(out_val), block_tensors(args[3]), strict=True)
    return sum(2 * results.raw.numel() * _taps(*block[:2]) for results, block in pairs)


@register_flop_formula(torch.ops.mobilenet_ext.separable_convs_backward, get_raw=True)
def separable_convs_backward_flop(*args: Any, out_val: object = None, **kwargs: object) -> int:
    """Count each convolution twice: a block in the middle of a network needs all gradients.

    A stem, whose image gets none, once.
    """
    _, maps, weights, *_ = args
    pairs = zip(maps[1::2], weights[::2], weights[1::2], strict=True)
    flops = sum(4 * raw.numel() * _taps(depthwise, weight) for raw, depthwise, weight in pairs)
    stem = args[8] if len(args) > 8 else None
    return (
        flops if stem is None or not args[6] else flops + 2 * maps[0].numel() * prod(stem.shape[1:])
    )


@register_flop_formula(torch.ops.mobilenet_ext.image_conv)
def image_conv_flop(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *args: object,
    out_shape: tuple[Sequence[int], ...],
    **kwargs: object,
) -> int:
    """Two an element of a filter and output value."""
    return 2 * prod(out_shape[0]) * prod(weight_shape[1:])


@register_flop_formula(torch.ops.mobilenet_ext.image_conv_backward)
def image_conv_backward_flop(
    grad_output_shape: Sequence[int], *args: object, out_shape: Sequence[int], **kwargs: object
) -> int:
    """Count the forward once."""
    return 2 * prod(grad_output_shape) * prod(out_shape[1:])


def _taps(depthwise_weight: Tensor, weight: Tensor) -> int:
    """Multiply-adds for each value between a block's two convolutions."""
    return prod(depthwise_weight.shape[2:]) + weight.shape[0]


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
    batch = input.shape[0]
    size: Sequence[int] = input.shape[2:]
    macs, channels = 0, 0
    for index, (before, channels, stride, *columns) in enumerate(layers.tolist()):
        size = conv_geometry(size, 3, stride, padding_rule(columns), 1).output_size(size, 3)
        macs += prod(size) * before * (9 * channels if index == 0 else 9 + channels)
    return 2 * batch * (macs + channels * outputs * has_classifier)
