"""Backward passes that can be differentiated again (create_graph=True), in stock ops.

The kernels' gradients are constants to autograd. So when a backward is recorded, it is computed by
differentiating reference.py instead: slower, and never silently a wrong second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .batch_norm import Options, Vectors
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
    inputs = (input, ctx.options, *saved[:4])
    return _gradients(stock, inputs, ctx.needs_input_grad, grad_output)


def recorded_unit(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of autograd.DepthwiseConvBNReLU."""

    def stock(input: Tensor, weight: Tensor, unit: Unit, *vectors: Tensor | None) -> Tensor:
        bn = unit.bn.batch_norm(Vectors(*vectors[:4]))
        input_bn = unit.input_bn and unit.input_bn.batch_norm(Vectors(*vectors[4:]))
        stride, padding, dilation = unit.conv.stride, unit.conv.padding, unit.conv.dilation
        return reference.bn_relu_depthwise_conv_bn_relu(
            input, input_bn, weight, bn, stride=stride, padding=padding, dilation=dilation
        )

    input, weight, *saved = ctx.saved_tensors
    inputs = (input, weight, ctx.unit, *saved[:8])
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
