"""A block of two convolutions with a BatchNorm before each, and its gradients."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from .batch_norm import batch_norm_affine, batch_norm_gradient_map, scale_shift_act_backward
from .conv import (
    depthwise_conv,
    depthwise_conv_backward,
    pointwise_conv,
    pointwise_conv_backward,
)

Terms: TypeAlias = tuple[Tensor | None, Tensor | None]
_NO_TERMS: Terms = (None, None)


def separable_conv(
    input: Tensor,
    input_mean: Tensor,
    input_var: Tensor,
    input_bn_weight: Tensor | None,
    input_bn_bias: Tensor | None,
    input_eps: float,
    input_activation: int,
    input_of_batch: bool,
    depthwise_weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    eps: float,
    activation: int,
    pointwise_weight: Tensor,
    statistics: bool,
    *geometry: int,
) -> tuple[Tensor, ...]:
    """pointwise(act(bn(depthwise(act(input_bn(input)))))), and all that its backward needs."""
    nothing = (None, None, 0)
    input_count = _count(input) if input_of_batch else 0
    input_scale, input_shift, *of_input = batch_norm_affine(
        input_mean, input_var, input_bn_weight, input_bn_bias, input_eps, input_count
    )
    prologue = (input_scale, input_shift, input_activation)
    raw, raw_mean, raw_var = depthwise_conv(
        input, depthwise_weight, *prologue, *nothing, running_mean is None, *geometry
    )
    mean, var, count = raw_mean, raw_var, _count(raw)
    if running_mean is not None and running_var is not None:
        mean, var, count = running_mean, running_var, 0
    scale, shift, *of_bn = batch_norm_affine(mean, var, bn_weight, bn_bias, eps, count)
    output = pointwise_conv(raw, pointwise_weight, scale, shift, activation, *nothing, statistics)
    return *output, raw, scale, shift, raw_mean, *of_bn, input_scale, input_shift, *of_input


def separable_conv_backward(
    grad_output: Tensor,
    input: Tensor,
    raw: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    invstd: Tensor,
    activation: int,
    of_batch: bool,
    input_scale: Tensor,
    input_shift: Tensor,
    input_mean: Tensor,
    input_invstd: Tensor,
    input_activation: int,
    input_of_batch: bool,
    *geometry_and_needs: int,
) -> tuple[Tensor, ...]:
    """Gradients of the input, both weights, and weight and bias of bn and of input_bn."""
    geometry, needs = geometry_and_needs[:-5], geometry_and_needs[-5:]
    need_input, need_depthwise, need_pointwise, need_bn, need_input_bn = map(bool, needs)
    no_map = (None, None, None, 0)
    nothing = raw.new_empty(0)
    vectors = scale.new_empty(0), scale.new_empty(0)
    need_map = need_input or need_input_bn
    need_raw = need_map or need_depthwise
    need_sums = need_bn or (of_batch and need_raw)

    dy, grad_pointwise, grad_sum, grad_dot = pointwise_conv_backward(
        grad_output, *no_map, *(None, None, None), raw, pointwise_weight, scale, shift,
        mean if need_sums else None, activation, need_raw or need_sums, need_pointwise,
    )  # fmt: skip
    of_bn, terms = vectors, _NO_TERMS
    if need_sums:
        of_bn, terms = _batch_norm_gradients(raw, grad_sum, grad_dot, scale, mean, invstd, of_batch)
    if not need_raw:
        return nothing, nothing.clone(), grad_pointwise, *of_bn, *vectors

    grad_input, grad_depthwise, grad_sum, grad_dot = depthwise_conv_backward(
        dy, raw, None, None, 0, scale, *terms, input, depthwise_weight, input_scale, input_shift,
        input_mean if need_map else None, input_activation, *geometry, need_map, need_depthwise,
    )  # fmt: skip
    of_input_bn = vectors
    if need_map:
        of_input_bn, terms = _batch_norm_gradients(
            input, grad_sum, grad_dot, input_scale, input_mean, input_invstd, input_of_batch
        )
    if need_input:
        grad_input = scale_shift_act_backward(grad_input, input, None, None, 0, input_scale, *terms)
    return (
        grad_input if need_input else nothing,
        *(grad_depthwise, grad_pointwise),
        *of_bn,
        *of_input_bn,
    )


def _batch_norm_gradients(
    raw: Tensor,
    grad_sum: Tensor,
    grad_dot: Tensor,
    scale: Tensor,
    mean: Tensor,
    invstd: Tensor,
    of_batch: bool,
) -> tuple[tuple[Tensor, Tensor], Terms]:
    """Gradients of weight and bias, and the terms that the batch's statistics send to raw."""
    grad_weight, raw_scale, raw_shift = batch_norm_gradient_map(
        grad_sum, grad_dot, scale, mean, invstd, _count(raw)
    )
    return (grad_weight, grad_sum), (raw_scale, raw_shift) if of_batch else _NO_TERMS


def _count(map: Tensor) -> int:
    """Values per channel."""
    return map.numel() // map.shape[1]
