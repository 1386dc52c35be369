"""A run of blocks as one op and one autograd Function: what a network trains with.

    raw0 -> input_bn, act -> depthwise -> raw1 -> bn, act -> pointwise -> raw2 -> ...

Each convolution normalises on load and counts statistics on store, so that raw outputs are the only
maps written and saved; on CUDA cuBLAS multiplies, between passes of ours that do both. A call from
Python, or a node of autograd's graph, costs as much as a block's arithmetic does at 32 x 32 pixels
or on a GPU, so there is one for all of them, or where maps are large for all of a size. On a CPU it
begins with the image: the stem is a convolution of ours too. Where that cannot be, the blocks run
one by one, step by step (block.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import block
from .autograd import mark_statistics
from .batch_norm import BatchNorm, Options, Statistics, vector_dtype
from .chain_layout import block_gradients, interleave, result_columns, tensor_columns
from .dispatch import needs_grad
from .double_backward import is_recorded, recorded_chain
from .geometry import Conv
from .pointwise import RawMap
from .stem import ImageConv

_ops = torch.ops.mobilenet_ext
DEVICES_WITH_OP = {"cpu", "cuda"}
SPLIT_FROM = 1 << 24  # values of a map


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
    """What is not a tensor in a run of blocks; `statistics`: whether to count the output's.

    `eps` and `options` are as the ops take them, block by block: eps of input_bn and bn; geometry
    and both activations.
    """

    convs: tuple[Conv, ...]
    input_bns: tuple[Options, ...]
    bns: tuple[Options, ...]
    statistics: bool
    eps: tuple[float, ...]
    options: tuple[int, ...]


class Run(NamedTuple):
    """Blocks in a row, and how the op takes them; see chain_layout.BlockTensors for `tensors`."""

    links: tuple[Link, ...]
    plan: Plan
    tensors: tuple[Tensor | None, ...]


def make_run(links: Sequence[Link], statistics: bool) -> Run:
    """Line up blocks; `statistics`: whether to count the last output's."""
    convs = tuple(x.conv for x in links)
    input_bns = tuple(x.input_bn.options for x in links)
    bns = tuple(x.bn.options for x in links)
    eps: list[float] = []
    options: list[int] = []
    tensors: list[Tensor | None] = []
    for link, x, y in zip(links, input_bns, bns, strict=True):
        eps += (x.eps, y.eps)
        options += (*link.conv, x.activation, y.activation)
        tensors += (link.depthwise_weight, link.pointwise_weight)
        tensors += (*link.input_bn.vectors, *link.bn.vectors)
    plan = Plan(convs, input_bns, bns, statistics, tuple(eps), tuple(options))
    return Run(tuple(links), plan, tuple(tensors))


def run_chain(input: RawMap | ImageConv, run: Run) -> tuple[RawMap, list[Moments]]:
    """Run blocks, through autograd where gradients are wanted.

    Returns the last one's output, with its statistics if asked for, and each block's Moments.
    """
    if not is_one_op(input[0], run.links):
        first = RawMap(input.convolve()) if isinstance(input, ImageConv) else input
        return _run_one_by_one(first, run)
    moments: list[Moments] = []
    for part in _parts(input, run):
        input, found = _run_op(input, part)
        moments += found
    return cast(RawMap, input), moments


def blocks_of_a_size(links: Sequence[Link]) -> list[tuple[int, int]]:
    """Return where runs of blocks begin and end whose maps have a size, but for the first input."""
    starts = [i for i, link in enumerate(links) if i == 0 or link.conv.stride > 1]
    return list(pairwise([*starts, len(links)]))


def _parts(input: RawMap | ImageConv, run: Run) -> list[Run]:
    """Split a run of large maps where they become smaller.

    A node of autograd's graph keeps its maps until its backward is through. At the end of it, where
    gradients are largest, one node would hold all maps of the network beside them.
    """
    if prod(input.shape) < SPLIT_FROM:
        return [run]
    links = run.links
    parts = []
    for first, end in blocks_of_a_size(links):
        counts = run.plan.statistics if end == len(links) else links[end].input_bn.training
        parts.append(make_run(links[first:end], counts))
    return parts


def _run_op(input: RawMap | ImageConv, run: Run) -> tuple[RawMap, list[Moments]]:
    has_stem = isinstance(input, ImageConv)
    first, stem, stem_conv = (RawMap(input[0]), *input[1:]) if has_stem else (input, None, None)
    if needs_grad(input[0], stem, *run.tensors):
        moments: list[Moments] = []
        outputs = SeparableConvs.apply(*first, stem, stem_conv, run.plan, moments, *run.tensors)
        return RawMap(*outputs), moments
    output, _, moments = chain_forward(_convolved(input, run.tensors), run.tensors, run.plan)
    return output, moments


def _convolved(input: RawMap | ImageConv, tensors: Sequence[Tensor | None]) -> RawMap:
    """Convolve an image, and count statistics if the first BatchNorm wants the batch's."""
    if isinstance(input, RawMap):
        return input
    counts = tensors[4] is None
    output, *moments = _ops.image_conv(input.image, input.weight, counts, *input.conv[:5])
    return RawMap(output, *(moments if counts else ()))


def is_one_op(input: Tensor, links: Sequence[Link]) -> bool:
    """Tell whether blocks run as one op.

    A single image may have one value per channel, or none: block.py tells what torch does then.
    """
    return (
        input.device.type in DEVICES_WITH_OP
        and input.shape[0] > 1
        and all(x.input_bn.process_group is None and x.bn.process_group is None for x in links)
        and not torch.compiler.is_compiling()
    )


def _run_one_by_one(input: RawMap, run: Run) -> tuple[RawMap, list[Moments]]:
    moments = []
    for x, after in zip(run.links, [*run.links[1:], None], strict=True):
        weights = (x.depthwise_weight, x.pointwise_weight)
        counts = run.plan.statistics if after is None else after.input_bn.training
        input, bn, input_bn = block.run_block(input, weights, x.conv, x.input_bn, x.bn, counts)
        moments.append(Moments(input_bn, bn))
    return input, moments


class Saved(NamedTuple):
    """What the backward takes of the forward, as the op takes it."""

    maps: list[Tensor]
    vectors: list[Tensor]


def chain_forward(
    input: RawMap, tensors: Sequence[Tensor | None], plan: Plan
) -> tuple[RawMap, Saved, list[Moments]]:
    """Run the op."""
    x, mean, var = input
    if tensors[4] is None and mean is None:
        mean, var = _ops.batch_norm_statistics(x)
    dtype = vector_dtype(x)
    tensors = [y if y is None or y.ndim != 1 or y.dtype == dtype else y.to(dtype) for y in tensors]
    results = _ops.separable_convs(x, mean, var, tensors, plan.eps, plan.options, plan.statistics)

    of, given = result_columns(results), tensor_columns(tensors)
    input_means = [mean, *of.mean[:-1]]
    vectors = interleave(
        *(of.input_bn.scale, of.input_bn.shift, _used(given.input_bn.mean, input_means)),
        *(of.input_bn.invstd, of.bn.scale, of.bn.shift, _used(given.bn.mean, of.raw_mean)),
        of.bn.invstd,
    )
    maps = interleave([x, *of.output[:-1]], of.raw)
    input_bns = _moments(given.input_bn.mean, input_means, of.input_bn.unbiased_var)
    bns = _moments(given.bn.mean, of.raw_mean, of.bn.unbiased_var)
    moments = [Moments(*pair) for pair in zip(input_bns, bns, strict=True)]
    counted = (of.mean[-1], of.var[-1]) if plan.statistics else ()
    return RawMap(of.output[-1], *counted), Saved(maps, vectors), moments


def _used(running: Sequence[Tensor | None], of_batch: Sequence[Tensor]) -> list[Tensor]:
    """Return the means that were normalised with."""
    return [y if x is None else x for x, y in zip(running, of_batch, strict=True)]


def _moments(
    running: Sequence[Tensor | None], means: Sequence[Tensor], variances: Sequence[Tensor]
) -> list[Statistics]:
    """Return what running statistics move towards, nothing for those that were used."""
    triples = zip(running, means, variances, strict=True)
    return [Statistics(mean, var) if x is None else Statistics() for x, mean, var in triples]


class SeparableConvs(Function):
    """The output of a run of blocks, its mean and variance."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        stem: Tensor | None,
        stem_conv: Conv | None,
        plan: Plan,
        moments: list[Moments],
        *tensors: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Run the blocks; `tensors` are their ten each, `moments` is filled.

        With a stem, a weight [F, C, K, K], the input is the image that it convolves.
        """
        image, first = None, RawMap(input, mean, var)
        if stem is not None and stem_conv is not None:
            image, first = input, _convolved(ImageConv(input, stem, stem_conv), tensors)
        output, saved, moments[:] = chain_forward(first, tensors, plan)
        ctx.plan, ctx.stem_conv = plan, stem_conv
        # Autograd need not watch them: running means are among the tensors, and the input's mean is
        # saved beside them; nobody else writes the others.
        ctx.vectors = saved.vectors
        if not ctx.needs_input_grad[3]:
            image = stem = None
        ctx.save_for_backward(*saved.maps, *tensors, first.mean, image, stem)
        mark_statistics(ctx, output.mean, output.var)
        return tuple(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Gradients for (input, mean, var, stem and conv, plan, moments, all blocks' tensors)."""
        need_input, _, _, need_stem, _, _, _, *needs = ctx.needs_input_grad
        if grad_output is None:
            return (None,) * (7 + len(needs))
        plan: Plan = ctx.plan
        if is_recorded():
            return recorded_chain(ctx, grad_output)
        *saved, _, image, stem = ctx.saved_tensors
        maps = 2 * len(plan.convs)
        given, needed = tensor_columns(saved[maps:]), tensor_columns(needs)
        flags = interleave(
            *([x is None for x in given.input_bn.mean], [x is None for x in given.bn.mean]),
            *(needed.depthwise_weight, needed.pointwise_weight),
            *(map(any, zip(*bn[:2], strict=True)) for bn in (needed.input_bn, needed.bn)),
        )
        first, *gradients = _ops.separable_convs_backward(
            grad_output,
            saved[:maps],
            interleave(given.depthwise_weight, given.pointwise_weight),
            ctx.vectors,
            plan.options,
            flags,
            need_input or need_stem,
            image,
            stem,
            (ctx.stem_conv or ())[:5],
        )
        results: list[Tensor | None] = []
        for x in block_gradients(gradients):
            results += (x.depthwise_weight, x.pointwise_weight)
            results += (x.input_bn_weight, x.input_bn_bias, None, None)
            results += (x.bn_weight, x.bn_bias, None, None)
        kept = (x if need else None for x, need in zip(results, needs, strict=True))
        grad_input = first if need_input else None
        return grad_input, None, None, first if need_stem else None, None, None, None, *kept
