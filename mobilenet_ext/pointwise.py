"""The pointwise convolution of a block and its gradients, on whatever multiplies matrices best.

    raw [N, C', H, W] = weight * act(scale * input + shift)

On a CPU that is one op, which normalises on load, counts on store and keeps nothing in between.
Elsewhere the matrix product is the device's library's: the normalised map is written for it, in the
forward and again in the backward, and never saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import dispatch
from .batch_norm import Affine

_ops = torch.ops.mobilenet_ext
DEVICES_WITH_OP = {"cpu"}


class RawMap(NamedTuple):
    """A raw convolution output [N, C, H, W], and its mean and biased variance where counted."""

    tensor: Tensor
    mean: Tensor | None = None
    var: Tensor | None = None

    @property
    def shape(self) -> Sequence[int]:
        """Of the map."""
        return self.tensor.shape

    @property
    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and biased variance per channel, or None."""
        return None if self.mean is None or self.var is None else (self.mean, self.var)


class PointwiseGradients(NamedTuple):
    """What the backward computes; `masked` tells whether the activation's gradient is in it."""

    input: Tensor | None
    weight: Tensor | None
    sums: tuple[Tensor, Tensor] | None
    masked: bool


def pointwise_forward(
    input: Tensor, weight: Tensor, bn: Affine, activation: int, statistics: bool
) -> RawMap:
    """Multiply act(bn(input)) with the weight [C', C, 1, 1]."""
    if input.device.type in DEVICES_WITH_OP:
        prologue, no_epilogue = (bn.scale, bn.shift, activation), (None, None, 0)
        output, mean, var = _ops.pointwise_conv(input, weight, *prologue, *no_epilogue, statistics)
        return RawMap(output, mean, var) if statistics else RawMap(output)
    z = _normalised(input, bn, activation)
    output = _as_map(_product(_as_matrix(z), weight.flatten(1).t()), z)
    return RawMap(output, *_ops.batch_norm_statistics(output)) if statistics else RawMap(output)


def pointwise_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bn: Affine,
    activation: int,
    *,
    need_input: bool,
    need_weight: bool,
    need_sums: bool,
) -> PointwiseGradients:
    """Gradients of pointwise_forward's normalised input and weight.

    The sums are BatchNorm's: of dy and of dy * (input - mean), dy the gradient of bn(input).
    """
    if input.device.type in DEVICES_WITH_OP:
        grad_input, grad_weight, *sums = _ops.pointwise_conv_backward(
            grad_output,
            *(None, None, None, 0),
            *(None, None, None),
            input,
            weight,
            bn.scale,
            bn.shift,
            bn.mean if need_sums else None,
            activation,
            need_input or need_sums,
            need_weight,
        )
        return PointwiseGradients(grad_input, grad_weight, tuple(sums), masked=True)
    grad = _as_matrix(grad_output)
    grad_input = grad_weight = both = None
    if need_weight:
        z = _as_matrix(_normalised(input, bn, activation))
        grad_weight = _product(grad.t(), z).view_as(weight)
    if need_input or need_sums:
        grad_input = _as_map(_product(grad, weight.flatten(1)), input)
    if need_sums:
        both = _ops.scale_shift_act_backward_reduce(
            grad_input, input, bn.scale, bn.shift, activation, bn.mean
        )
    return PointwiseGradients(grad_input, grad_weight, both, masked=False)


def _normalised(input: Tensor, bn: Affine, activation: int) -> Tensor:
    if bn.scale is None:
        return input
    z: Tensor = _ops.scale_shift_act(input, bn.scale, bn.shift, activation)
    return z


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply in the operands' dtype; autocast has had its say before."""
    with dispatch.without_autocast(left.device):
        return left @ right


def _as_matrix(map: Tensor) -> Tensor:
    """View (NCHW: copy) [N, C, H, W] as [pixels, C]."""
    return map.permute(0, 2, 3, 1).flatten(0, 2)


def _as_map(matrix: Tensor, like: Tensor) -> Tensor:
    """View [pixels, C] as a channels_last [N, C, H, W], in the memory format of `like`."""
    batch, _, height, width = like.shape
    output = matrix.view(batch, height, width, -1).permute(0, 3, 1, 2)
    if like.is_contiguous(memory_format=torch.channels_last):
        return output
    return output.contiguous()
