"""The block that MobileNet trains with: everything between two raw pointwise outputs.

    raw0 -> input_bn, act -> depthwise -> raw1 -> bn, act -> pointwise -> raw2

Each convolution normalises on load and counts statistics on store, so that raw outputs are the
only maps written, and raw0 and raw1 the only ones saved. On a CPU the block is one op, and so is
its backward; where the statistics of other ranks have to come in between, and on other devices, it
goes step by step (block_steps.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import block_steps
from .autograd import mark_statistics
from .batch_norm import Affine, BatchNorm, Statistics, Vectors, vector_dtype
from .block_steps import Block, BlockForward, BlockGradients
from .dispatch import needs_grad
from .double_backward import is_recorded, recorded_block
from .geometry import Conv
from .pointwise import DEVICES_WITH_OP, RawMap

_ops = torch.ops.mobilenet_ext


def is_one_op(input: RawMap, block: Block) -> bool:
    """Tell whether the block runs as one op.

    A single image may have one value per channel, or none: the steps tell what torch does then.
    """
    return (
        input.tensor.device.type in DEVICES_WITH_OP
        and input.tensor.shape[0] > 1
        and block.input_bn.process_group is None
        and block.bn.process_group is None
    )


def block_forward(
    input: RawMap,
    weights: tuple[Tensor, Tensor],
    block: Block,
    vectors: Vectors,
    input_vectors: Vectors,
) -> BlockForward:
    """Compute pointwise(act(bn(depthwise(act(input_bn(input)))))) and keep the raw outputs."""
    if not is_one_op(input, block):
        return block_steps.forward(input, weights, block, vectors, input_vectors)
    x, input_bn, bn = input.tensor, block.input_bn, block.bn
    dtype = vector_dtype(x)
    vectors, input_vectors = vectors.to(dtype), input_vectors.to(dtype)
    input_of_batch = input_vectors.mean is None
    moments = input_vectors[2:]
    if input_of_batch:
        moments = input.statistics or _ops.batch_norm_statistics(x)
    output, mean, var, raw, *applied = _ops.separable_conv(
        x,
        *moments,
        *input_vectors[:2],
        input_bn.eps,
        input_bn.activation,
        input_of_batch,
        weights[0],
        *vectors[2:],
        *vectors[:2],
        bn.eps,
        bn.activation,
        weights[1],
        block.statistics,
        *block.conv,
    )
    scale, shift, raw_mean, invstd, unbiased_var, input_scale, input_shift, *rest = applied
    return BlockForward(
        RawMap(output, mean, var) if block.statistics else RawMap(output),
        raw,
        Affine(scale, shift, raw_mean if vectors.mean is None else vectors.mean, invstd),
        Affine(input_scale, input_shift, moments[0], rest[0]),
        Statistics(raw_mean, unbiased_var) if vectors.mean is None else Statistics(),
        Statistics(moments[0], rest[1]) if input_of_batch else Statistics(),
    )


def block_backward(
    grad_output: Tensor,
    maps: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    block: Block,
    bn: Affine,
    input_bn: Affine,
    of_batch: tuple[bool, bool],
    needs: tuple[bool, ...],
) -> BlockGradients:
    """Gradients of what `needs` asks for, in the order of BlockGradients."""
    input, raw = maps
    if not is_one_op(RawMap(input), block):
        return block_steps.backward(
            grad_output, maps, weights, block, bn, input_bn, of_batch, needs
        )
    gradients = _ops.separable_conv_backward(
        grad_output,
        input,
        raw,
        *weights,
        *bn[:4],
        block.bn.activation,
        of_batch[0],
        *input_bn[:4],
        block.input_bn.activation,
        of_batch[1],
        *block.conv,
        *needs[:3],
        needs[3] or needs[4],
        needs[5] or needs[6],
    )
    return BlockGradients(*(x if need else None for x, need in zip(gradients, needs, strict=True)))


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
        input, depthwise_weight, pointwise_weight, *saved = ctx.saved_tensors
        gradients = block_backward(
            grad_output,
            (input, saved[8]),
            (depthwise_weight, pointwise_weight),
            block,
            Affine(*saved[9:14]),
            Affine(*saved[14:]),
            (saved[2] is None, saved[6] is None),
            (need_input, need_depthwise, need_pointwise, *need[:2], *need[4:6]),
        )
        return (
            gradients.input,
            *(None, None),
            *gradients[1:3],
            None,
            *gradients[3:5],
            *(None, None),
            *gradients[5:],
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
