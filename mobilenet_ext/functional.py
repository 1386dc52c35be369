"""The fused units as functions: tensors in, tensor out, running statistics updated in place.

Each call goes one of two ways, with the same result:

- the kernels (torch.ops.mobilenet_ext), wrapped in autograd.py where gradients are wanted;
- stock PyTorch (reference.py) for a depth multiplier above 1, and for devices that the kernels were
  not built for, which is said once per device in a warning.

Under autocast input and weight are cast to the autocast dtype, as torch does for convolutions;
BatchNorm's parameters and statistics stay as they are and its arithmetic is float32.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import autograd, reference
from ._library import cuda_status, has_kernels
from .batch_norm import BatchNorm, Vectors
from .checks import check_batch_norm, check_conv, check_map
from .geometry import Padding, Unit, conv_geometry

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "BatchNorm",
    "bn_relu",
    "bn_relu_depthwise_conv_bn_relu",
    "depthwise_conv_bn_relu",
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
        input: [N, C, H, W], any strides; channels_last is the fast layout.
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
    name = "depthwise_conv_bn_relu"
    return _depthwise_unit(name, input, None, weight, bn, stride, padding, dilation)


def bn_relu_depthwise_conv_bn_relu(
    input: Tensor,
    input_bn: BatchNorm,
    weight: Tensor,
    bn: BatchNorm,
    *,
    stride: int = 1,
    padding: Padding = 1,
    dilation: int = 1,
) -> Tensor:
    """Depthwise convolution between two BatchNorms with activation: the unit MobileNet trains with.

        act(bn(conv(act(input_bn(input)))))

    The input is the raw output of the convolution before it. It is normalised as the depthwise
    kernel loads it and never written normalised; padding is zero after that. In training this
    saves `input` and the raw depthwise output, half of what separate layers save.

    Args:
        input: [N, C, H, W], any strides; channels_last is the fast layout.
        input_bn: BatchNorm [C] and activation of the input.
        weight: [C * multiplier, 1, K, K], in the input's dtype. A multiplier above 1 takes stock
            PyTorch ops.
        bn: BatchNorm [C * multiplier] and activation of the convolution's output.
        stride: step in both axes.
        padding: zeros on every side, (left, right, top, bottom), or "same" for TensorFlow's SAME.
        dilation: distance of the taps in both axes.

    Returns:
        [N, C * multiplier, H', W'] in the input's memory format.

    Raises:
        ValueError: an argument is out of range, or training with one value per channel.
        RuntimeError: shapes or dtypes do not fit together.

    Source: Howard et al. 2017, arXiv:1704.04861, figure 3.
    """
    name = "bn_relu_depthwise_conv_bn_relu"
    return _depthwise_unit(name, input, input_bn, weight, bn, stride, padding, dilation)


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
        _refuse_group(op, bn)
        return reference.bn_relu(input, **bn.arguments)
    if _needs_grad(input, bn.weight, bn.bias):
        output, *update = autograd.BNReLU.apply(input, bn.options, *bn.vectors)
    else:
        output, _, update = autograd.bn_relu_forward(input, bn.vectors, bn.options)
    bn.update(*update)
    return output


def _depthwise_unit(
    op: str,
    input: Tensor,
    input_bn: BatchNorm | None,
    weight: Tensor,
    bn: BatchNorm,
    stride: int,
    padding: Padding,
    dilation: int,
) -> Tensor:
    """Check, cast for autocast, choose the way, and move the running statistics."""
    check_conv(op, input, weight, stride, padding, dilation)
    check_batch_norm(op, "bn_" if input_bn is None else "bn.", bn, weight.shape[0])
    if input_bn is not None:
        check_batch_norm(op, "input_bn.", input_bn, input.shape[1])
    input, weight = autocast(input), autocast(weight)
    has_multiplier = weight.shape[0] != input.shape[1]
    if has_multiplier or not device_has_kernels(input.device):
        _refuse_group(op, bn, input_bn)
        return reference.bn_relu_depthwise_conv_bn_relu(
            input, input_bn, weight, bn, stride=stride, padding=padding, dilation=dilation
        )
    conv = conv_geometry(input, weight.shape[2], stride, padding, dilation)
    unit = Unit(conv, bn.options, input_bn and input_bn.options)
    vectors, input_vectors = bn.vectors, input_bn.vectors if input_bn else Vectors()
    if _needs_grad(input, weight, *vectors[:2], *input_vectors[:2]):
        output, *update = autograd.DepthwiseConvBNReLU.apply(
            input, weight, unit, *vectors, *input_vectors
        )
    elif bn.training or (input_bn is not None and input_bn.training):
        result = autograd.depthwise_forward(input, weight, vectors, input_vectors, unit)
        output, update = result.output, [*result.statistics, *result.input_statistics]
    else:
        return autograd.depthwise_inference(input, weight, vectors, input_vectors, unit)
    bn.update(*update[:2])
    if input_bn is not None:
        input_bn.update(*update[2:])
    return output


def is_autocast_enabled(device: torch.device) -> bool:
    """Tell whether autocast is on for a device; some (meta) know no autocast."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def autocast(x: Tensor) -> Tensor:
    """Cast to the autocast dtype where autocast would; float64 stays, as in torch."""
    if is_autocast_enabled(x.device) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _needs_grad(*tensors: Tensor | None) -> bool:
    """Tell whether autograd would record an op on these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def device_has_kernels(device: torch.device) -> bool:
    """Tell whether the ops run on a device; on meta the fake kernels do."""
    if device.type == "meta" or has_kernels(device):
        return True
    if not torch.compiler.is_compiling():
        _warn_about_device(device.type)
    return False


@cache
def _warn_about_device(kind: str) -> None:
    """Say once per device that stock PyTorch does the work."""
    why = f" ({cuda_status()})" if kind == "cuda" else ""
    warnings.warn(
        f"mobilenet_ext has no kernels for {kind}{why}: using stock PyTorch ops there",
        stacklevel=5,
    )


def _refuse_group(op: str, *norms: BatchNorm | None) -> None:
    """Stock ops do not share statistics over ranks; dropping the group would be silent."""
    for bn in norms:
        if bn is not None and bn.training and bn.process_group is not None:
            raise RuntimeError(f"{op}: process_group must be None where kernels are missing")
