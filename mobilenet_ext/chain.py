"""A run of blocks as one op and one autograd Function: what a network trains with on a CPU.

    raw0 -> input_bn, act -> depthwise -> raw1 -> bn, act -> pointwise -> raw2 -> ...

Each convolution normalises on load and counts statistics on store, so that raw outputs are the only
maps written and saved. At 32 x 32 pixels a call from Python, or a node of autograd's graph, costs
as much as a block's arithmetic, so there is one for all of them. Where that cannot be, the blocks
run one by one, step by step (block.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import block, pointwise
from .autograd import mark_statistics
from .batch_norm import BatchNorm, Options, Statistics, vector_dtype
from .chain_layout import (
    BlockFlags,
    Normalised,
    block_gradients,
    block_results,
    block_tensors,
)
from .dispatch import needs_grad
from .double_backward import is_recorded, recorded_chain
from .geometry import Conv
from .pointwise import RawMap

_ops = torch.ops.mobilenet_ext


class Link(NamedTuple):
    """A block: its two weights, the geometry of the depthwise one, a BatchNorm before each."""

    depthwise_weight: Tensor
    pointwise_weight: Tensor
    conv: Conv
    input_bn: BatchNorm
    bn: BatchNorm


class Moments(NamedTuple):
    """What the running statistics of a block's two BatchNorms move towards."""

    input_bn: Statistics
    bn: Statistics


class Plan(NamedTuple):
    """What is not a tensor in a run of blocks; `statistics`: whether to count the output's."""

    convs: tuple[Conv, ...]
    input_bns: tuple[Options, ...]
    bns: tuple[Options, ...]
    statistics: bool

    @property
    def eps(self) -> list[float]:
        """As the op takes them: of input_bn and bn, block by block."""
        pairs = zip(self.input_bns, self.bns, strict=True)
        return [options.eps for pair in pairs for options in pair]

    @property
    def options(self) -> list[int]:
        """As the ops take them: geometry and both activations, block by block."""
        blocks = zip(self.convs, self.input_bns, self.bns, strict=True)
        return [n for conv, x, y in blocks for n in (*conv, x.activation, y.activation)]


class Values(NamedTuple):
    """What the forward leaves of a block."""

    maps: tuple[Tensor, Tensor]
    """Input, and raw output of the depthwise convolution."""
    norms: tuple[Normalised, Normalised]
    """Of input_bn and of bn."""
    moments: tuple[Tensor | None, ...]
    """Mean and unbiased variance of the input, then of raw; None: not the batch's."""


def run_chain(
    input: RawMap, links: Sequence[Link], statistics: bool
) -> tuple[RawMap, list[Moments]]:
    """Run blocks, through autograd where gradients are wanted.

    Returns the last one's output, with its statistics if asked for, and each block's Moments.
    """
    if not is_one_op(input.tensor, links):
        return _run_one_by_one(input, links, statistics)
    plan = Plan(
        tuple(x.conv for x in links),
        tuple(x.input_bn.options for x in links),
        tuple(x.bn.options for x in links),
        statistics,
    )
    tensors: list[Tensor | None] = []
    for x in links:
        tensors += (x.depthwise_weight, x.pointwise_weight, *x.input_bn.vectors, *x.bn.vectors)
    if needs_grad(input.tensor, *tensors):
        outputs = SeparableConvs.apply(*input, plan, *tensors)
    else:
        outputs, _ = chain_forward(input, tensors, plan)
    pairs = [Statistics(*pair) for pair in zip(outputs[3::2], outputs[4::2], strict=True)]
    moments = [Moments(*both) for both in zip(pairs[::2], pairs[1::2], strict=True)]
    return RawMap(*outputs[:3]), moments


def is_one_op(input: Tensor, links: Sequence[Link]) -> bool:
    """Tell whether blocks run as one op.

    A single image may have one value per channel, or none: block.py tells what torch does then.
    """
    return (
        input.device.type in pointwise.DEVICES_WITH_OP
        and input.shape[0] > 1
        and all(x.input_bn.process_group is None and x.bn.process_group is None for x in links)
        and not torch.compiler.is_compiling()
    )


def _run_one_by_one(
    input: RawMap, links: Sequence[Link], statistics: bool
) -> tuple[RawMap, list[Moments]]:
    moments = []
    for x, after in zip(links, [*links[1:], None], strict=True):
        weights = (x.depthwise_weight, x.pointwise_weight)
        counts = statistics if after is None else after.input_bn.training
        input, bn, input_bn = block.run_block(input, weights, x.conv, x.input_bn, x.bn, counts)
        moments.append(Moments(input_bn, bn))
    return input, moments


def chain_forward(
    input: RawMap, tensors: Sequence[Tensor | None], plan: Plan
) -> tuple[tuple[Tensor | None, ...], list[Values]]:
    """Run the op.

    Returns the output, its mean and variance, and the moments of all blocks; and their Values.
    """
    x, mean, var = input
    if tensors[4] is None and mean is None:
        mean, var = _ops.batch_norm_statistics(x)
    dtype = vector_dtype(x)
    tensors = [y if y is None or y.ndim != 1 or y.dtype == dtype else y.to(dtype) for y in tensors]
    results = _ops.separable_convs(x, mean, var, tensors, plan.eps, plan.options, plan.statistics)
    values = []
    for before, after in zip(block_tensors(tensors), block_results(results), strict=True):
        norms: list[Normalised] = []
        moments: list[Tensor | None] = []
        for running, of_batch, (scale, shift, invstd, unbiased_var) in (
            (before.input_bn.mean, mean, after.input_bn),
            (before.bn.mean, after.raw_mean, after.bn),
        ):
            used = of_batch if running is None else running
            assert used is not None
            norms.append(Normalised(scale, shift, used, invstd))
            moments += (of_batch, unbiased_var) if running is None else (None, None)
        values.append(Values((x, after.raw), (norms[0], norms[1]), tuple(moments)))
        x, mean, var = after[:3]
    if not plan.statistics:
        mean = var = None
    return (x, mean, var, *(y for value in values for y in value.moments)), values


class SeparableConvs(Function):
    """The output of a run of blocks, its mean and variance, then the moments of all blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        plan: Plan,
        *tensors: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Run the blocks; `tensors` are their ten each."""
        outputs, values = chain_forward(RawMap(input, mean, var), tensors, plan)
        ctx.plan = plan
        # Autograd need not watch them: running means are among the tensors, and the input's mean is
        # saved beside them; nobody else sees the others.
        ctx.vectors = [y for value in values for norm in value.norms for y in norm]
        ctx.save_for_backward(*(y for value in values for y in value.maps), *tensors, mean)
        mark_statistics(ctx, *outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Gradients for (input, mean, var, plan, the tensors of all blocks)."""
        need_input, _, _, _, *needs = ctx.needs_input_grad
        if grad_output is None:
            return (None,) * (4 + len(needs))
        plan: Plan = ctx.plan
        if is_recorded():
            return recorded_chain(ctx, grad_output)
        saved, maps = ctx.saved_tensors, 2 * len(plan.convs)
        tensors = saved[maps:-1]
        grad_input, *gradients = _ops.separable_convs_backward(
            grad_output,
            saved[:maps],
            [weight for block in block_tensors(tensors) for weight in block[:2]],
            ctx.vectors,
            plan.options,
            _flags(tensors, needs),
            need_input,
        )
        results: list[Tensor | None] = []
        for x in block_gradients(gradients):
            results += (x.depthwise_weight, x.pointwise_weight)
            results += (x.input_bn_weight, x.input_bn_bias, None, None)
            results += (x.bn_weight, x.bn_bias, None, None)
        kept = (x if need else None for x, need in zip(results, needs, strict=True))
        return grad_input if need_input else None, None, None, None, *kept


def _flags(tensors: Sequence[Tensor | None], needs: Sequence[bool]) -> list[bool]:
    """As the backward op takes them: what is of the batch, and which gradients are needed."""
    flags: list[bool] = []
    for x, need in zip(block_tensors(tensors), block_tensors(needs), strict=True):
        parameters = (need[:1], need[1:2], need.input_bn, need.bn)
        of_batch = (x.input_bn.mean is None, x.bn.mean is None)
        flags += BlockFlags(*of_batch, *map(any, parameters))
    return flags
