"""The block that MobileNet trains with: everything between two raw pointwise outputs.

    raw0 -> input_bn, act -> depthwise -> raw1 -> bn, act -> pointwise -> raw2

Each convolution normalises on load and counts statistics on store, so that raw outputs are the
only maps written, and raw0 and raw1 the only ones saved. The backward comes with the gradient of
raw2 and leaves with that of raw0; what passes between the two convolutions is the gradient dy of
bn's output and its two sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from .autograd import Gradients, gradients_of, mark_statistics, normalise
from .batch_norm import Affine, BatchNorm, Options, Statistics, Vectors
from .dispatch import needs_grad
from .double_backward import is_recorded, recorded_block, recorded_pointwise
from .geometry import Conv
from .pointwise import RawMap, pointwise_backward, pointwise_forward

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


def block_forward(
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


class SeparableConv(Function):
    """The block's output, mean and variance of it, then the Statistics of bn and input_bn."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        depthwise_weight: Tensor,
        pointwise_weight: Tensor,
        block: Block,
        *vectors: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Run the block; `vectors` are the four of bn, then the four of input_bn."""
        result = block_forward(
            RawMap(input, mean, var),
            (depthwise_weight, pointwise_weight),
            block,
            Vectors(*vectors[:4]),
            Vectors(*vectors[4:]),
        )
        ctx.block = block
        ctx.save_for_backward(
            input,
            depthwise_weight,
            pointwise_weight,
            *vectors,
            result.raw,
            *result.bn,
            *result.input_bn,
        )
        others = (*result.output[1:], *result.statistics, *result.input_statistics)
        mark_statistics(ctx, *others)
        return result.output.tensor, *others

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Gradients for (input, mean, var, both weights, block, bn's 4, input_bn's 4)."""
        if grad_output is None:
            return (None,) * 14
        block: Block = ctx.block
        if is_recorded(block.bn, block.input_bn):
            return recorded_block(ctx, grad_output)

        need_input, _, _, need_depthwise, need_pointwise, _, need_gamma, need_beta, *_ = (
            ctx.needs_input_grad
        )
        need_input_gamma, need_input_beta = ctx.needs_input_grad[10:12]
        input, depthwise_weight, pointwise_weight, *saved = ctx.saved_tensors
        vectors, input_vectors, raw = Vectors(*saved[:4]), Vectors(*saved[4:8]), saved[8]
        bn, input_bn = Affine(*saved[9:14]), Affine(*saved[14:])
        of_batch = vectors.mean is None
        need_map = need_input or need_input_gamma or need_input_beta
        need_raw = need_map or need_depthwise

        gradients, input_gradients = Gradients(), Gradients()
        need_sums = need_gamma or need_beta or (of_batch and need_raw)
        dy = pointwise_backward(
            grad_output,
            raw,
            pointwise_weight,
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
            mask = (None, None, 0) if dy.masked else (bn.scale, bn.shift, block.bn.activation)
            grad_input, grad_depthwise, *sums = _ops.depthwise_conv_backward(
                dy.input,
                raw,
                *mask,
                bn.scale,
                *gradients.raw_terms(of_batch),
                input,
                depthwise_weight,
                input_bn.scale,
                input_bn.shift,
                input_bn.mean if need_map else None,
                block.input_bn.activation,
                *block.conv,
                need_map,
                need_depthwise,
            )
            if need_map:
                input_gradients = gradients_of(input, input_bn, block.input_bn, *sums)
        if need_input:
            grad_input = _ops.scale_shift_act_backward(
                grad_input,
                input,
                *(None, None, 0),
                input_bn.scale,
                *input_gradients.raw_terms(input_vectors.mean is None),
            )
        return (
            grad_input if need_input else None,
            None,
            None,
            grad_depthwise if need_depthwise else None,
            dy.weight if need_pointwise else None,
            None,
            *gradients.of_parameters(need_gamma, need_beta),
            *(None, None),
            *input_gradients.of_parameters(need_input_gamma, need_input_beta),
            *(None, None),
        )


def run_block(
    input: RawMap,
    weights: tuple[Tensor, Tensor],
    conv: Conv,
    input_bn: BatchNorm,
    bn: BatchNorm,
    statistics: bool,
) -> tuple[RawMap, Statistics, Statistics]:
    """Run a block, through autograd where gradients are wanted.

    Returns its output, and what the running statistics of bn and of input_bn move towards.
    """
    block = Block(conv, input_bn.options, bn.options, statistics)
    vectors, input_vectors = bn.vectors, input_bn.vectors
    if needs_grad(input.tensor, *weights, *vectors[:2], *input_vectors[:2]):
        output, mean, var, *both = SeparableConv.apply(
            *input, *weights, block, *vectors, *input_vectors
        )
        return RawMap(output, mean, var), Statistics(*both[:2]), Statistics(*both[2:])
    result = block_forward(input, weights, block, vectors, input_vectors)
    return result.output, result.statistics, result.input_statistics


class PointwiseConv(Function):
    """A pointwise convolution by itself: output, then its mean and variance if counted."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, statistics: bool
    ) -> tuple[Tensor | None, ...]:
        """Multiply; nothing is normalised on the way."""
        ctx.save_for_backward(input, weight)
        result = pointwise_forward(input, weight, Affine(), 0, statistics)
        mark_statistics(ctx, *result[1:])
        return result

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Gradients for (input, weight, statistics)."""
        if grad_output is None:
            return (None,) * 3
        if is_recorded():
            return recorded_pointwise(ctx, grad_output)
        need_input, need_weight, _ = ctx.needs_input_grad
        input, weight = ctx.saved_tensors
        gradients = pointwise_backward(
            grad_output,
            input,
            weight,
            Affine(),
            0,
            need_input=need_input,
            need_weight=need_weight,
            need_sums=False,
        )
        return (
            gradients.input if need_input else None,
            gradients.weight if need_weight else None,
            None,
        )
