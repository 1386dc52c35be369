"""Backward passes that can be differentiated again (create_graph=True), in stock ops.

The kernels' gradients are constants to autograd. So when a backward is recorded, it is computed by
differentiating reference.py instead: slower, and never silently a wrong second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .batch_norm import Options, Vectors
from .chain_layout import block_tensors
from .geometry import Unit


def is_recorded(*norms: Options | None) -> bool:
    """Tell whether this backward may be differentiated in turn.

    torch.compile records no double backward, and says so itself.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if any(options is not None and options.process_group is not None for options in norms):
        raise RuntimeError(
            "mobilenet_ext: double backward (create_graph=True) through a BatchNorm with a "
            "process group is not supported"
        )
    return True


def recorded_bn_relu(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of autograd.BNReLU."""

    def stock(input: Tensor, options: Options, *vectors: Tensor | None) -> Tensor:
        return reference.bn_relu(input, **options.batch_norm(Vectors(*vectors)).arguments)

    input, *saved = ctx.saved_tensors
    needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:])
    gradients = _gradients(stock, (input, ctx.options, *saved[:4]), needs, grad_output)
    return gradients[0], None, None, *gradients[1:]


def recorded_pointwise(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of autograd.PointwiseConv."""
    needs = ctx.needs_input_grad[:2]
    return *_gradients(F.conv2d, ctx.saved_tensors, needs, grad_output), None


def recorded_block(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of block.SeparableConv."""
    block = ctx.block

    def stock(
        input: Tensor, depthwise_weight: Tensor, weight: Tensor, *vectors: Tensor | None
    ) -> Tensor:
        z = reference.bn_relu(input, **block.input_bn.batch_norm(Vectors(*vectors[4:])).arguments)
        raw = reference.conv2d(z, depthwise_weight, block.conv)
        z = reference.bn_relu(raw, **block.bn.batch_norm(Vectors(*vectors[:4])).arguments)
        return F.conv2d(z, weight)

    input, depthwise_weight, weight, *saved = ctx.saved_tensors
    inputs = (input, depthwise_weight, weight, *saved[:8])
    need_input, _, _, need_depthwise, need_pointwise, _, *need_vectors = ctx.needs_input_grad
    needs = (need_input, need_depthwise, need_pointwise, *need_vectors)
    first, *gradients = _gradients(stock, inputs, needs, grad_output)
    return first, None, None, *gradients[:2], None, *gradients[2:]


def recorded_chain(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of chain.SeparableConvs."""
    plan = ctx.plan

    def stock(x: Tensor, stem: Tensor | None, *tensors: Tensor | None) -> Tensor:
        if stem is not None:
            conv = ctx.stem_conv
            x = F.conv2d(F.pad(x, conv.padding), stem, stride=conv.stride)
        steps = zip(block_tensors(tensors), plan.convs, plan.input_bns, plan.bns, strict=True)
        for block, conv, input_options, options in steps:
            input_bn = input_options.batch_norm(block.input_bn).arguments
            bn = options.batch_norm(block.bn).arguments
            raw = reference.conv2d(reference.bn_relu(x, **input_bn), block.depthwise_weight, conv)
            x = F.conv2d(reference.bn_relu(raw, **bn), block.pointwise_weight)
        return x

    need_input, _, _, need_stem, _, _, _, *needs = ctx.needs_input_grad
    *saved, _, image, stem = ctx.saved_tensors
    inputs = (saved[0] if image is None else image, stem, *saved[2 * len(plan.convs) :])
    needs = (need_input, need_stem, *needs)
    first, of_stem, *gradients = _gradients(stock, inputs, needs, grad_output)
    return first, None, None, of_stem, None, None, None, *gradients


def recorded_depthwise(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of autograd.DepthwiseConvBNReLU."""

    def stock(input: Tensor, weight: Tensor, unit: Unit, *vectors: Tensor | None) -> Tensor:
        raw = reference.conv2d(input, weight, unit.conv)
        return reference.bn_relu(raw, **unit.bn.batch_norm(Vectors(*vectors)).arguments)

    input, weight, *saved = ctx.saved_tensors
    inputs = (input, weight, ctx.unit, *saved[:4])
    return _gradients(stock, inputs, ctx.needs_input_grad, grad_output)


def _gradients(
    stock: Callable[..., Tensor], inputs: Sequence[Any], needs: Sequence[bool], grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of stock(*inputs) that can be differentiated again.

    The aliases make them partial derivatives, also where one input was computed from another.
    """
    pairs = zip(inputs, needs, strict=True)
    aliases = [x.view_as(x) if need else x for x, need in pairs]
    wanted = [x for x, need in zip(aliases, needs, strict=True) if need]
    gradients = iter(torch.autograd.grad(stock(*aliases), wanted, grad_output, create_graph=True))
    return tuple(next(gradients) if need else None for need in needs)
