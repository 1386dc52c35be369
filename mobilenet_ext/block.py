"""A block, everything between two raw pointwise outputs, as autograd sees it, step by step.

    raw0 -> input_bn, act -> depthwise -> raw1 -> bn, act -> pointwise -> raw2

Only raw outputs are written, and raw0 and raw1 saved. What passes between the two convolutions in
the backward is the gradient dy of bn's output and its two sums. Between the steps ranks share
statistics; where they need not, chain.py does the same in one op.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from .autograd import Gradients, gradients_of, mark_statistics, normalise
from .batch_norm import Affine, BatchNorm, Options, Statistics, Vectors
from .dispatch import needs_grad
from .double_backward import is_recorded, recorded_block
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

        need_input, _, _, need_depthwise, need_pointwise, _, *need = ctx.needs_input_grad
        need_bn, need_input_bn = need[:2], need[4:6]
        input, depthwise_weight, pointwise_weight, *saved = ctx.saved_tensors
        vectors, input_vectors, raw = Vectors(*saved[:4]), Vectors(*saved[4:8]), saved[8]
        bn, input_bn = Affine(*saved[9:14]), Affine(*saved[14:])
        of_batch = vectors.mean is None
        need_map = need_input or any(need_input_bn)
        need_raw = need_map or need_depthwise

        gradients, input_gradients = Gradients(), Gradients()
        need_sums = any(need_bn) or (of_batch and need_raw)
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
            terms = (bn.scale, *gradients.raw_terms(of_batch))
            saved_maps = (input, raw, depthwise_weight)
            grad_input, grad_depthwise, *sums = _depthwise_backward(
                dy, saved_maps, bn, terms, input_bn, block, (need_map, need_depthwise)
            )
            if need_map:
                input_gradients = gradients_of(input, input_bn, block.input_bn, *sums)
        if need_input:
            terms = (input_bn.scale, *input_gradients.raw_terms(input_vectors.mean is None))
            no_map = (None, None, 0)
            grad_input = _ops.scale_shift_act_backward(grad_input, input, *no_map, *terms)
        return (
            grad_input if need_input else None,
            *(None, None),
            grad_depthwise if need_depthwise else None,
            dy.weight if need_pointwise else None,
            None,
            *gradients.of_parameters(*need_bn),
            *(None, None),
            *input_gradients.of_parameters(*need_input_bn),
            *(None, None),
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
