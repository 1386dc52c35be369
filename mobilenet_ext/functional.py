"""The fused units as functions: tensors in, tensor out, running statistics updated in place.

Each call goes one of two ways, with the same result:

- the kernels (torch.ops.mobilenet_ext), wrapped in autograd.py where gradients are wanted;
- stock PyTorch (reference.py) for a depth multiplier above 1, and for devices that the kernels were
  not built for, which is said once per device in a warning (dispatch.py).

Under autocast input and weight are cast to the autocast dtype, as torch does for convolutions;
BatchNorm's parameters and statistics stay as they are and its arithmetic is float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from . import autograd, reference
from .batch_norm import Affine, BatchNorm
from .chain import Link, make_run, run_chain
from .checks import check_batch_norm, check_conv, check_map, check_pointwise
from .dispatch import autocast, device_has_kernels, needs_grad, refuse_group, takes_kernels
from .geometry import Padding, Unit, conv_geometry
from .pointwise import RawMap, pointwise_forward

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "BatchNorm",
    "RawMap",
    "bn_relu",
    "bn_relu_separable_conv",
    "depthwise_conv_bn_relu",
    "pointwise_conv",
]


def depthwise_conv_bn_relu(
    input: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    stride: int = 1,
    padding: Padding = 1,
    dilation: int = 1,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    activation: str | None = "relu6",
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Depthwise convolution, BatchNorm and activation.

        act((conv(input) - mean) / sqrt(var + eps) * bn_weight + bn_bias)

    When training, mean and biased variance are the batch's, and the running ones, where given,
    move towards them (the variance unbiased) by `momentum` in place; else they are the running
    ones.

    Args:
        input: [N, C, H, W], any strides; channels_last is the fast layout. Others are copied, but
            for contiguous maps on CUDA.
        weight: [C * multiplier, 1, K, K], in the input's dtype. A multiplier above 1 takes stock
            PyTorch ops.
        bn_weight: [C * multiplier], or None for 1.
        bn_bias: [C * multiplier], or None for 0.
        running_mean: [C * multiplier]; may be None when training.
        running_var: [C * multiplier]; may be None when training.
        stride: step in both axes.
        padding: zeros on every side, (left, right, top, bottom), or "same" for TensorFlow's SAME.
        dilation: distance of the taps in both axes.
        training: normalise with the statistics of the batch.
        momentum: weight of the batch in the running statistics; may be a tensor, [].
        eps: added to the variance.
        activation: "relu", "relu6" or None.
        process_group: share batch statistics over these ranks, as SyncBatchNorm does.

    Returns:
        [N, C * multiplier, H', W'] in the input's memory format, with
        H' = floor((H + top + bottom - dilation * (K - 1) - 1) / stride) + 1.

    Raises:
        ValueError: an argument is out of range, or training with one value per channel.
        RuntimeError: shapes or dtypes do not fit together.

    Source: Howard et al. 2017, arXiv:1704.04861, figure 3, left half of the right column.
    """
    bn = BatchNorm(
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        training,
        momentum,
        eps,
        activation,
        process_group,
    )
    op = "depthwise_conv_bn_relu"
    check_conv(op, input, weight, stride, padding, dilation)
    check_batch_norm(op, "bn_", bn, weight.shape[0])
    input, weight = autocast(input), autocast(weight)
    if not takes_kernels(input, weight):
        refuse_group(op, bn)
        raw = reference.depthwise_conv(
            input, weight, stride=stride, padding=padding, dilation=dilation
        )
        return reference.bn_relu(raw, **bn.arguments)
    unit = Unit(
        conv_geometry(input.shape[2:], weight.shape[2], stride, padding, dilation), bn.options
    )
    if needs_grad(input, weight, bn.weight, bn.bias):
        output, *update = autograd.DepthwiseConvBNReLU.apply(input, weight, unit, *bn.vectors)
    elif bn.training:
        output, _, _, update = autograd.depthwise_forward(input, weight, bn.vectors, unit)
    else:
        return autograd.depthwise_inference(input, weight, bn.vectors, unit)
    bn.update(*update)
    return output


def bn_relu_separable_conv(
    input: RawMap,
    input_bn: BatchNorm,
    depthwise_weight: Tensor,
    bn: BatchNorm,
    pointwise_weight: Tensor,
    *,
    stride: int = 1,
    padding: Padding = 1,
    dilation: int = 1,
    statistics: bool = False,
) -> RawMap:
    """Depthwise and pointwise convolution, a BatchNorm before each: what MobileNet trains with.

        pointwise(act(bn(depthwise(act(input_bn(input))))))

    The input is the raw output of the convolution before. Each kernel normalises as it loads and no
    normalised map is written on a CPU; padding is zero after that. In training this saves the input
    and the raw depthwise output, half of what separate layers save.

    Args:
        input: [N, C, H, W], any strides; channels_last is the fast layout. With its statistics,
            where whatever wrote it has counted them, training does without a pass over it.
        input_bn: BatchNorm [C] and activation of the input.
        depthwise_weight: [C * multiplier, 1, K, K], in the input's dtype. A multiplier above 1
            takes stock PyTorch ops.
        bn: BatchNorm [C * multiplier] and activation between the convolutions.
        pointwise_weight: [C', C * multiplier, 1, 1], in the input's dtype.
        stride: step of the depthwise convolution in both axes.
        padding: of the depthwise convolution: zeros on every side, (left, right, top, bottom), or
            "same" for TensorFlow's SAME.
        dilation: distance of the depthwise taps in both axes.
        statistics: count the output's mean and variance on the way, for a BatchNorm after it.

    Returns:
        [N, C', H', W'] in the input's memory format, and its statistics if they were asked for.

    Raises:
        ValueError: an argument is out of range, or training with one value per channel.
        RuntimeError: shapes or dtypes do not fit together.

    Source: Howard et al. 2017, arXiv:1704.04861, figure 3.
    """
    op = "bn_relu_separable_conv"
    x = input.tensor
    check_conv(op, x, depthwise_weight, stride, padding, dilation)
    check_pointwise(op, depthwise_weight.shape[0], pointwise_weight)
    check_batch_norm(op, "bn.", bn, depthwise_weight.shape[0])
    check_batch_norm(op, "input_bn.", input_bn, x.shape[1])
    x = autocast(x)
    weights = (autocast(depthwise_weight), autocast(pointwise_weight))
    if not takes_kernels(x, weights[0]):
        refuse_group(op, bn, input_bn)
        z = reference.bn_relu(x, **input_bn.arguments)
        raw = reference.depthwise_conv(
            z, weights[0], stride=stride, padding=padding, dilation=dilation
        )
        return RawMap(F.conv2d(reference.bn_relu(raw, **bn.arguments), weights[1]))
    conv = conv_geometry(x.shape[2:], weights[0].shape[2], stride, padding, dilation)
    run = make_run([Link(*weights, conv, input_bn, bn)], statistics)
    output, (moments,) = run_chain(input._replace(tensor=x), run)
    bn.update(*moments.bn)
    input_bn.update(*moments.input_bn)
    return output


def pointwise_conv(input: Tensor, weight: Tensor, *, statistics: bool = False) -> RawMap:
    """1 x 1 convolution, without a bias.

    Args:
        input: [N, C, H, W], any strides; channels_last is the fast layout.
        weight: [C', C, 1, 1], in the input's dtype.
        statistics: count the output's mean and variance on the way, for a BatchNorm after it.

    Returns:
        [N, C', H, W] in the input's memory format, and its statistics if they were asked for.

    Raises:
        ValueError: shapes do not fit together.
        RuntimeError: dtypes or devices do not fit together.
    """
    op = "pointwise_conv"
    check_map(op, input)
    check_pointwise(op, input.shape[1], weight)
    input, weight = autocast(input), autocast(weight)
    if not device_has_kernels(input.device):
        return RawMap(F.conv2d(input, weight))
    if needs_grad(input, weight):
        return RawMap(*autograd.PointwiseConv.apply(input, weight, statistics))
    return pointwise_forward(input, weight, Affine(), 0, statistics)


def bn_relu(
    input: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    activation: str | None = "relu6",
    process_group: ProcessGroup | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """BatchNorm and activation in one pass (two when training).

        act((input - mean) / sqrt(var + eps) * bn_weight + bn_bias)

    Args:
        input: [N, C, H, W], any strides.
        bn_weight: [C], or None for 1.
        bn_bias: [C], or None for 0.
        running_mean: [C]; may be None when training.
        running_var: [C]; may be None when training.
        training: normalise with the statistics of the batch.
        momentum: weight of the batch in the running statistics; may be a tensor, [].
        eps: added to the variance.
        activation: "relu", "relu6" or None.
        process_group: share batch statistics over these ranks, as SyncBatchNorm does.
        statistics: the input's mean and biased variance, [C], where they are known; saves a pass.

    Returns:
        [N, C, H, W] in the input's memory format.

    Raises:
        ValueError: an argument is out of range, or training with one value per channel.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """
    bn = BatchNorm(
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        training,
        momentum,
        eps,
        activation,
        process_group,
    )
    op = "bn_relu"
    check_map(op, input)
    check_batch_norm(op, "", bn, input.shape[1])
    if not device_has_kernels(input.device):
        refuse_group(op, bn)
        return reference.bn_relu(input, **bn.arguments)
    raw = RawMap(input, *(statistics or ()))
    if needs_grad(input, bn.weight, bn.bias):
        output, *update = autograd.BNReLU.apply(*raw, bn.options, *bn.vectors)
    else:
        output, _, update = autograd.bn_relu_forward(raw, bn.vectors, bn.options)
    bn.update(*update)
    return output
