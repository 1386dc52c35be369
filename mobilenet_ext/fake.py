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
from .chain_layout import block_flags, block_options, block_tensors
from .geometry import Conv, patch_columns


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
    *geometry: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, *size = input.shape
    conv = Conv(*geometry)
    count = channels if statistics else 0
    return (
        _map(input, (batch, channels, *conv.output_size(size, weight.shape[2]))),
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
    *geometry_and_needs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, need_grad_input, need_grad_weight = geometry_and_needs
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


@register_fake("mobilenet_ext::separable_convs")
def separable_convs(
    input: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    tensors: Sequence[Tensor | None],
    eps: Sequence[float],
    options: Sequence[int],
    statistics: bool,
) -> list[Tensor]:
    results: list[Tensor] = []
    no_maps = (None, None, 0, None, None, 0)
    blocks = block_tensors(tensors)
    counted = [*(block.input_bn.mean is None for block in blocks[1:]), statistics]
    for block, (conv, *_), counts in zip(blocks, block_options(options), counted, strict=True):
        raw, raw_mean, _ = depthwise_conv(
            input, block.depthwise_weight, *no_maps, block.bn.mean is None, *conv
        )
        output, mean, var = pointwise_conv(raw, block.pointwise_weight, *no_maps, counts)
        results += (output, mean, var, raw, raw_mean)
        for x, bn in ((input, block.input_bn), (raw, block.bn)):
            channels = x.shape[1]
            results += (_vector(x, channels) for _ in range(3))
            results.append(_vector(x, channels if bn.mean is None else 0))
        input = output
    return results


@register_fake("mobilenet_ext::separable_convs_backward")
def separable_convs_backward(
    grad_output: Tensor,
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    vectors: Sequence[Tensor],
    options: Sequence[int],
    flags: Sequence[int],
    need_input: bool,
    image: Tensor | None = None,
    stem: Tensor | None = None,
    stem_options: Sequence[int] = (),
) -> list[Tensor]:
    input, need_dx = maps[0], need_input
    first = _map(input, input.shape) if stem is None else stem.new_empty(stem.shape)
    results = [first if need_input else input.new_empty(0)]
    inputs, pairs = maps[::2], zip(weights[::2], weights[1::2], strict=True)
    for input, both, block in zip(inputs, pairs, block_flags(flags), strict=True):
        need_norms = need_dx or block.need_input_bn
        need_raw = need_norms or block.need_depthwise_weight
        need_sums = block.need_bn or (block.of_batch and need_raw)
        results += (
            input.new_empty(weight.shape if need else 0)
            for weight, need in zip(both, block.needs[:2], strict=True)
        )
        for need in (need_norms, need_norms, need_sums, need_sums):
            results.append(_vector(input, input.shape[1] if need else 0))
        need_dx = need_dx or any(block.needs)
    return results


@register_fake("mobilenet_ext::batch_norm_statistics")
def batch_norm_statistics(input: Tensor) -> tuple[Tensor, Tensor]:
    return _vector(input, input.shape[1]), _vector(input, input.shape[1])


@register_fake("mobilenet_ext::image_conv")
def image_conv(
    input: Tensor,
    weight: Tensor,
    statistics: bool,
    *geometry: int,
) -> tuple[Tensor, Tensor, Tensor]:
    conv = Conv._make([*geometry, 1])
    filters, _, kernel, _ = weight.shape
    count = filters if statistics else 0
    return (
        _map(input, (input.shape[0], filters, *conv.output_size(input.shape[2:], kernel))),
        _vector(input, count),
        _vector(input, count),
    )


@register_fake("mobilenet_ext::image_conv_backward")
def image_conv_backward(
    grad_output: Tensor,
    output: Tensor | None,
    grad_scale: Tensor | None,
    raw_scale: Tensor | None,
    raw_shift: Tensor | None,
    input: Tensor,
    weight: Tensor,
    *geometry: int,
) -> Tensor:
    return weight.new_empty(weight.shape)


@register_fake("mobilenet_ext::image_patches")
def image_patches(
    input: Tensor,
    kernel: int,
    *geometry: int,
) -> Tensor:
    conv = Conv._make([*geometry, 1])
    height, width = conv.output_size(input.shape[2:], kernel)
    columns = patch_columns(kernel, input.shape[1])
    return input.new_empty((input.shape[0] * height * width, columns))


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
