"""A block step by step, each an op: where ranks share statistics, and off the CPU.

What passes between the two convolutions in the backward is the gradient dy of bn's output and its
two sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .autograd import Gradients, gradients_of, normalise
from .batch_norm import Affine, Options, Statistics, Vectors
from .geometry import Conv
from .pointwise import PointwiseGradients, RawMap, pointwise_backward, pointwise_forward

_ops = torch.ops.mobilenet_ext


class Block(NamedTuple):
    """What is not a tensor in a block; `statistics`: whether to count its output's."""

    conv: Conv
    input_bn: Options
    bn: Options
    statistics: bool


class BlockForward(NamedTuple):
    """What a block computed on its way."""

    output: RawMap
    raw: Tensor
    bn: Affine
    input_bn: Affine
    statistics: Statistics
    input_statistics: Statistics


class BlockGradients(NamedTuple):
    """What a block's backward computes, as far as it was asked to."""

    input: Tensor | None = None
    depthwise_weight: Tensor | None = None
    pointwise_weight: Tensor | None = None
    bn_weight: Tensor | None = None
    bn_bias: Tensor | None = None
    input_bn_weight: Tensor | None = None
    input_bn_bias: Tensor | None = None


def forward(
    input: RawMap,
    weights: tuple[Tensor, Tensor],
    block: Block,
    vectors: Vectors,
    input_vectors: Vectors,
) -> BlockForward:
    """Compute pointwise(act(bn(depthwise(act(input_bn(input)))))) and keep the raw outputs."""
    depthwise_weight, pointwise_weight = weights
    input_bn, input_statistics = normalise(
        input.tensor, input_vectors, block.input_bn, input.statistics
    )
    raw, mean, var = _ops.depthwise_conv(
        input.tensor,
        depthwise_weight,
        *(input_bn.scale, input_bn.shift, block.input_bn.activation),
        *(None, None, 0),
        vectors.mean is None,
        *block.conv,
    )
    bn, statistics = normalise(raw, vectors, block.bn, (mean, var))
    output = pointwise_forward(raw, pointwise_weight, bn, block.bn.activation, block.statistics)
    return BlockForward(output, raw, bn, input_bn, statistics, input_statistics)


def backward(
    grad_output: Tensor,
    maps: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    block: Block,
    bn: Affine,
    input_bn: Affine,
    of_batch: tuple[bool, bool],
    needs: tuple[bool, ...],
) -> BlockGradients:
    """Gradients of what `needs` asks for, in the order of BlockGradients.

    `maps` are the block's input and the raw depthwise output; `of_batch` tells whether the
    statistics of bn and of input_bn are the batch's.
    """
    input, raw = maps
    need_input, need_depthwise, need_pointwise, *need = needs
    need_bn, need_input_bn = need[:2], need[2:]
    need_map = need_input or any(need_input_bn)
    need_raw = need_map or need_depthwise
    need_sums = any(need_bn) or (of_batch[0] and need_raw)

    gradients, input_gradients = Gradients(), Gradients()
    dy = pointwise_backward(
        grad_output,
        raw,
        weights[1],
        bn,
        block.bn.activation,
        need_input=need_raw,
        need_weight=need_pointwise,
        need_sums=need_sums,
    )
    if need_sums and dy.sums is not None:
        gradients = gradients_of(raw, bn, block.bn, *dy.sums)
    grad_input = grad_depthwise = None
    if need_raw:
        terms = (bn.scale, *gradients.raw_terms(of_batch[0]))
        grad_input, grad_depthwise, *sums = _depthwise_backward(
            dy, (input, raw, weights[0]), bn, terms, input_bn, block, (need_map, need_depthwise)
        )
        if need_map:
            input_gradients = gradients_of(input, input_bn, block.input_bn, *sums)
    if need_input:
        terms = (input_bn.scale, *input_gradients.raw_terms(of_batch[1]))
        grad_input = _ops.scale_shift_act_backward(grad_input, input, *(None, None, 0), *terms)
    return BlockGradients(
        grad_input if need_input else None,
        grad_depthwise if need_depthwise else None,
        dy.weight if need_pointwise else None,
        *gradients.of_parameters(*need_bn),
        *input_gradients.of_parameters(*need_input_bn),
    )


def _depthwise_backward(
    dy: PointwiseGradients,
    saved: tuple[Tensor, Tensor, Tensor],
    bn: Affine,
    terms: tuple[Tensor | None, ...],
    input_bn: Affine,
    block: Block,
    needs: tuple[bool, bool],
) -> tuple[Tensor, ...]:
    """Carry dy through bn and the depthwise convolution; `terms` are those of bn's backward."""
    input, raw, weight = saved
    mask = (None, None, 0) if dy.masked else (bn.scale, bn.shift, block.bn.activation)
    mean = input_bn.mean if needs[0] else None
    prologue = (input_bn.scale, input_bn.shift, mean, block.input_bn.activation)
    results: tuple[Tensor, ...] = _ops.depthwise_conv_backward(
        dy.input, raw, *mask, *terms, input, weight, *prologue, *block.conv, *needs
    )
    return results
