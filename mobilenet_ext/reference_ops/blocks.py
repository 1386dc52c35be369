"""A run of blocks, each of two convolutions with a BatchNorm before it, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from ..batch_norm import Vectors
from ..chain_layout import (
    Applied,
    BlockGradients,
    Normalised,
    block_flags,
    block_options,
    block_tensors,
    block_vectors,
)
from .batch_norm import batch_norm_affine, batch_norm_gradient_map, scale_shift_act_backward
from .conv import (
    depthwise_conv,
    depthwise_conv_backward,
    image_conv_backward,
    pointwise_conv,
    pointwise_conv_backward,
)

Terms: TypeAlias = tuple[Tensor | None, Tensor | None]


def separable_convs(
    input: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    tensors: Sequence[Tensor | None],
    eps: Sequence[float],
    options: Sequence[int],
    statistics: bool,
) -> list[Tensor]:
    """pointwise(act(bn(depthwise(act(input_bn(input)))))), again and again.

    Args:
        input: [N, C, H, W].
        mean: of the input, [C]; None if the first input_bn has running statistics.
        var: of the input, biased.
        tensors: ten a block: depthwise and pointwise weight; weight, bias and running mean and
            variance of input_bn and of bn. Without running statistics the batch's are taken.
        eps: of input_bn and bn, a block.
        options: eight a block: stride, paddings (left, right, top, bottom) and dilation of the
            depthwise convolution, activations after input_bn and bn.
        statistics: count those of the last output.

    Returns:
        Thirteen a block: output, its mean and biased variance, the raw depthwise output, its mean;
        scale, shift, invstd and unbiased variance of input_bn and of bn.
    """
    results: list[Tensor] = []
    blocks = block_tensors(tensors)
    counted = [*(block.input_bn.mean is None for block in blocks[1:]), statistics]
    settings = zip(block_options(options), eps[::2], eps[1::2], counted, strict=True)
    for block, (geometry, *both_eps, counts) in zip(blocks, settings, strict=True):
        conv, input_activation, activation = geometry
        before = _applied(input, block.input_bn, both_eps[0], mean, var)
        raw, raw_mean, raw_var = depthwise_conv(
            input, block.depthwise_weight, before.scale, before.shift, input_activation,
            None, None, 0, block.bn.mean is None, *conv,
        )  # fmt: skip
        between = _applied(raw, block.bn, both_eps[1], raw_mean, raw_var)
        input, mean, var = pointwise_conv(
            raw, block.pointwise_weight, between.scale, between.shift, activation,
            None, None, 0, counts,
        )  # fmt: skip
        results += (input, mean, var, raw, raw_mean, *before, *between)
    return results


def _applied(
    raw: Tensor, bn: Vectors, eps: float, mean: Tensor | None, var: Tensor | None
) -> Applied:
    """Resolve a BatchNorm, with its running statistics if it has them, else with mean and var."""
    count = _count(raw)
    if bn.mean is not None:
        mean, var, count = bn.mean, bn.var, 0
    assert mean is not None
    assert var is not None
    return Applied(*batch_norm_affine(mean, var, bn.weight, bn.bias, eps, count))


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
    """Gradients of separable_convs, and of the convolution that made its input, if it is given.

    Args:
        grad_output: of the last output.
        maps: two a block: input and raw depthwise output.
        weights: two a block: depthwise and pointwise.
        vectors: eight a block: scale, shift, mean and invstd of input_bn and of bn.
        options: as of separable_convs.
        flags: six a block: whether the statistics of input_bn and of bn are the batch's; whether
            gradients of the two weights, of input_bn's parameters and of bn's are needed.
        need_input: whether the gradient of the input is needed, or with an image of the stem.
        image: what image_conv took.
        stem: the weight that it took.
        stem_options: its stride and paddings (left, right, top, bottom).

    Returns:
        Gradient of the input or of the stem, then six a block: of the two weights, of weight and
        bias of input_bn and of bn. What is not needed is [0].
    """
    results: list[BlockGradients] = []
    blocks, norms, geometries = block_flags(flags), block_vectors(vectors), block_options(options)
    needed = [need_input or any(any(x.needs) for x in blocks[:i]) for i in range(len(blocks))]
    grad = grad_output
    for i in reversed(range(len(blocks))):
        input, raw = maps[2 * i : 2 * i + 2]
        before, between = norms[i]
        conv, input_activation, activation = geometries[i]
        input_of_batch, of_batch, *needs = blocks[i]
        need_depthwise, need_pointwise, need_input_bn, need_bn = needs
        need_dx = needed[i] or need_input_bn
        need_raw = need_dx or need_depthwise
        need_sums = need_bn or (of_batch and need_raw)

        dy, grad_pointwise, *sums = pointwise_conv_backward(
            grad, None, None, None, 0, None, None, None, raw, weights[2 * i + 1],
            between.scale, between.shift, between.mean if need_sums else None, activation,
            need_raw or need_sums, need_pointwise,
        )  # fmt: skip
        bn, terms = _batch_norm_gradients(raw, sums, between, of_batch, need_sums)
        if not need_raw:
            nothing = between.scale.new_empty(0), between.scale.new_empty(0)
            results.append(BlockGradients(raw.new_empty(0), grad_pointwise, *nothing, *bn))
            continue
        dx, grad_depthwise, *sums = depthwise_conv_backward(
            dy, raw, None, None, 0, between.scale, *terms, input, weights[2 * i],
            before.scale, before.shift, before.mean if need_dx else None, input_activation,
            *conv, need_dx, need_depthwise,
        )  # fmt: skip
        input_bn, terms = _batch_norm_gradients(input, sums, before, input_of_batch, need_dx)
        if i == 0 and need_input and image is not None and stem is not None:
            grad = image_conv_backward(dx, input, before.scale, *terms, image, stem, *stem_options)
        elif needed[i]:
            grad = scale_shift_act_backward(dx, input, None, None, 0, before.scale, *terms)
        results.append(BlockGradients(grad_depthwise, grad_pointwise, *input_bn, *bn))
    first = grad if need_input else grad_output.new_empty(0)
    return [first, *(gradient for block in reversed(results) for gradient in block)]


def _batch_norm_gradients(
    raw: Tensor,
    sums: Sequence[Tensor],
    bn: Normalised,
    of_batch: bool,
    needed: bool,
) -> tuple[tuple[Tensor, Tensor], Terms]:
    """Gradients of weight and bias, and the terms that the batch's statistics send to raw."""
    grad_sum, grad_dot = sums
    if not needed:
        return (grad_dot, grad_sum), (None, None)
    grad_weight, *terms = batch_norm_gradient_map(
        grad_sum, grad_dot, bn.scale, bn.mean, bn.invstd, _count(raw)
    )
    return (grad_weight, grad_sum), (terms[0], terms[1]) if of_batch else (None, None)


def _count(map: Tensor) -> int:
    """Values per channel."""
    return map.numel() // map.shape[1]
