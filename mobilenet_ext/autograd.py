"""Forward and backward of the fused units, written once on top of the ops.

What is saved is what was written anyway: raw convolution outputs, never a normalised map. The
backward recomputes BatchNorm and activation on load from a few [C] vectors:

    r --bn--> y --act--> z     dy = dz * act'(y)     d_raw = scale * dy + raw_scale * r + raw_shift

The ops have no autograd formula of their own: without gradients the forward functions here are
called directly, with gradients the Function classes wrap them; double_backward.py takes over when
a backward is itself recorded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function

from . import reference_ops
from .batch_norm import (
    Affine,
    Options,
    Statistics,
    Vectors,
    batch_affine,
    running_affine,
)
from .double_backward import (
    is_recorded,
    recorded_bn_relu,
    recorded_depthwise,
    recorded_pointwise,
)
from .geometry import Unit
from .pointwise import RawMap, pointwise_backward, pointwise_forward

_ops = torch.ops.mobilenet_ext


class Gradients(NamedTuple):
    """What a BatchNorm's sums amount to, [C]: its parameters' gradients, and raw's terms."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    raw_scale: Tensor | None = None
    raw_shift: Tensor | None = None

    def of_parameters(
        self, need_weight: bool, need_bias: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of weight and bias that are needed."""
        return self.weight if need_weight else None, self.bias if need_bias else None

    def raw_terms(self, of_batch: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradient through the statistics of the batch; running ones pass none."""
        return (self.raw_scale, self.raw_shift) if of_batch else (None, None)


def normalise(
    raw: Tensor,
    vectors: Vectors,
    options: Options,
    own: tuple[Tensor, Tensor] | None = None,
) -> tuple[Affine, Statistics]:
    """Make one BatchNorm ready to apply; `own` are raw's mean and var where they are known."""
    weight, bias, mean, var = vectors
    if mean is not None and var is not None:
        return running_affine(raw, weight, bias, mean, var, options.eps), Statistics()
    mean, var = own or _ops.batch_norm_statistics(raw)
    return batch_affine(raw, mean, var, weight, bias, options)


def bn_relu_forward(
    input: RawMap, vectors: Vectors, options: Options
) -> tuple[Tensor, Affine, Statistics]:
    """Compute act(bn(input))."""
    bn, statistics = normalise(input.tensor, vectors, options, input.statistics)
    output = _ops.scale_shift_act(input.tensor, bn.scale, bn.shift, options.activation)
    return output, bn, statistics


def depthwise_forward(
    input: Tensor, weight: Tensor, vectors: Vectors, unit: Unit
) -> tuple[Tensor, Tensor, Affine, Statistics]:
    """Compute act(bn(conv(input))); also return the raw output of conv."""
    no_map = (None, None, 0)
    of_batch = vectors.mean is None
    raw, mean, var = _ops.depthwise_conv(input, weight, *no_map, *no_map, of_batch, *unit.conv)
    bn, statistics = normalise(raw, vectors, unit.bn, (mean, var))
    output = _ops.scale_shift_act(raw, bn.scale, bn.shift, unit.bn.activation)
    return output, raw, bn, statistics


def depthwise_inference(input: Tensor, weight: Tensor, vectors: Vectors, unit: Unit) -> Tensor:
    """Compute the same with running statistics in one pass; there is no raw output."""
    bn, _ = normalise(input, vectors, unit.bn)
    epilogue = (bn.scale, bn.shift, unit.bn.activation)
    output: Tensor
    output, _, _ = _ops.depthwise_conv(
        input, weight, *(None, None, 0), *epilogue, False, *unit.conv
    )
    return output


class BNReLU(Function):
    """act(bn(input)), then the batch's Statistics, which carry no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        options: Options,
        *vectors: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Run the unit; `vectors` are the four of its BatchNorm."""
        raw = RawMap(input, mean, var)
        output, bn, statistics = bn_relu_forward(raw, Vectors(*vectors), options)
        ctx.options = options
        ctx.save_for_backward(input, *vectors, *bn)
        mark_statistics(ctx, *statistics)
        return output, *statistics

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Reduce, then apply; gradients for (input, its mean, var, options, the four vectors)."""
        if grad_output is None:
            return (None,) * 8
        options: Options = ctx.options
        if is_recorded(options):
            return recorded_bn_relu(ctx, grad_output)

        need_input, _, _, _, need_weight, need_bias, *_ = ctx.needs_input_grad
        input, *saved = ctx.saved_tensors
        vectors, bn = Vectors(*saved[:4]), Affine(*saved[4:])
        of_batch = vectors.mean is None
        grad_input, gradients = None, Gradients()
        if need_weight or need_bias or of_batch:
            gradients = _reduce(grad_output, input, bn, options)
        if need_input:
            grad_input = _ops.scale_shift_act_backward(
                grad_output,
                input,
                bn.scale,
                bn.shift,
                options.activation,
                bn.scale,
                *gradients.raw_terms(of_batch),
            )
        parameters = gradients.of_parameters(need_weight, need_bias)
        return grad_input, *(None, None, None), *parameters, *(None, None)


class DepthwiseConvBNReLU(Function):
    """act(bn(conv(input))), then the batch's Statistics."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, unit: Unit, *vectors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Run the unit; `vectors` are the four of its BatchNorm."""
        output, raw, bn, statistics = depthwise_forward(input, weight, Vectors(*vectors), unit)
        ctx.unit = unit
        ctx.save_for_backward(input, weight, *vectors, raw, *bn)
        mark_statistics(ctx, *statistics)
        return output, *statistics

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Reduce, then convolve; gradients for (input, weight, unit, the four vectors)."""
        if grad_output is None:
            return (None,) * 7
        unit: Unit = ctx.unit
        if is_recorded(unit.bn):
            return recorded_depthwise(ctx, grad_output)

        need_input, need_weight, _, need_gamma, need_beta, *_ = ctx.needs_input_grad
        input, weight, *saved = ctx.saved_tensors
        vectors, raw, bn = Vectors(*saved[:4]), saved[4], Affine(*saved[5:])
        of_batch, gradients = vectors.mean is None, Gradients()
        if need_gamma or need_beta or of_batch:
            gradients = _reduce(grad_output, raw, bn, unit.bn)
        grad_input, grad_weight = None, None
        if need_input or need_weight:
            grad_input, grad_weight, *_ = _ops.depthwise_conv_backward(
                grad_output,
                raw,
                bn.scale,
                bn.shift,
                unit.bn.activation,
                bn.scale,
                *gradients.raw_terms(of_batch),
                input,
                weight,
                *(None, None, None, 0),
                *unit.conv,
                need_input,
                need_weight,
            )
        return (
            grad_input if need_input else None,
            grad_weight if need_weight else None,
            None,
            *gradients.of_parameters(need_gamma, need_beta),
            *(None, None),
        )


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


def mark_statistics(ctx: Any, *statistics: Tensor | None) -> None:
    """Tell autograd that only the first output has a gradient."""
    ctx.mark_non_differentiable(*(x for x in statistics if x is not None))
    if not torch.compiler.is_compiling():
        ctx.set_materialize_grads(False)


def _reduce(grad_output: Tensor, raw: Tensor, bn: Affine, options: Options) -> Gradients:
    """Sum dy and dy * (raw - mean) per channel, one pass over both maps, and make use of it."""
    sums = _ops.scale_shift_act_backward_reduce(
        grad_output, raw, bn.scale, bn.shift, options.activation, bn.mean
    )
    return gradients_of(raw, bn, options, *sums)


def gradients_of(
    raw: Tensor, bn: Affine, options: Options, grad_sum: Tensor, grad_dot: Tensor
) -> Gradients:
    """Turn this rank's sums of dy and of dy * (raw - mean) into gradients.

    The parameters' gradients are of this rank, those of other ranks are the caller's to add.
    """
    scale, _, mean, invstd, total = bn
    assert scale is not None
    assert mean is not None
    assert invstd is not None
    if total is None:
        count = raw.numel() // raw.shape[1]
        vectors = (grad_sum, grad_dot, scale, mean, invstd)
        grad_weight, *terms = _ops.batch_norm_gradient_map(*vectors, count)
        return Gradients(grad_weight, grad_sum, *terms)
    both = torch.cat([grad_sum, grad_dot])
    dist.all_reduce(both, group=options.process_group)
    total_sum, total_dot = both.chunk(2)
    _, *terms = reference_ops.batch_norm_gradient_map(
        total_sum, total_dot, scale, mean, invstd, total
    )
    return Gradients(grad_dot * invstd, grad_sum, *terms)
