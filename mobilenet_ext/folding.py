"""Convolutions with their BatchNorm folded in: what a frozen network is made of.

A folded convolution is act(conv(x, weight * scale) + shift); batch_norm.py has scale and shift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from . import layers, reference_ops
from .batch_norm import vector_dtype
from .checks import require
from .geometry import Conv, Padding, conv_geometry
from .nn import is_intact


class FoldedConv(NamedTuple):
    """A convolution with its BatchNorm folded in.

    `scale` is all ones and `shift` the folded bias, in the vectors' dtype, as the op takes them;
    `bias` is the same in the weight's dtype, as torch takes it.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor
    kernel_size: int
    stride: int
    padding: Padding
    dilation: int
    activation: str | None

    def geometry(self, input: Tensor) -> Conv:
        """Resolve the padding for an input [N, C, H, W]."""
        rule = (self.kernel_size, self.stride, self.padding, self.dilation)
        return conv_geometry(input.shape[2:], *rule)

    def map(self, fn: Callable[[Tensor], Tensor]) -> FoldedConv:
        """Apply what nn.Module.to applies; vectors of 16-bit weights are float32."""

        def vector(x: Tensor) -> Tensor:
            y = fn(x)
            return y if y.dtype in (torch.float32, torch.float64) else x.to(y.device, torch.float32)

        return self._replace(
            weight=fn(self.weight),
            bias=fn(self.bias),
            scale=vector(self.scale),
            shift=vector(self.shift),
        )


def _describe(conv: nn.Module) -> str:
    """Say what a convolution does; repr() fails on some that were edited."""
    names = ("kernel_size", "stride", "padding", "padding_mode", "dilation", "groups")
    parts = [f"{name}={getattr(conv, name)}" for name in names if hasattr(conv, name)]
    parts.append(f"bias={getattr(conv, 'bias', None) is not None}")
    return f"{type(conv).__name__}({', '.join(parts)})"


def fold(layer: layers.ConvBNReLU) -> FoldedConv:
    """Fold a layer's BatchNorm into a copy of its convolution.

    Raises:
        ValueError: it is not Conv2d as the layer builds it and BatchNorm2d with running statistics.
    """
    conv, bn = layer.conv, layer.bn
    plain = layers.is_as_built(layer) and type(bn) in (nn.BatchNorm2d, nn.SyncBatchNorm)
    plain = plain and (conv.groups == 1 or isinstance(layer, layers.DepthwiseConvBNReLU))
    got = f"{_describe(conv)} and {type(bn).__name__}"
    require(plain, "freeze: layer", "Conv2d as the layer builds it and BatchNorm2d", got)
    mean, var = bn.running_mean, bn.running_var
    if mean is None or var is None:
        raise ValueError("freeze: running statistics must be tracked, got None")
    dtype = vector_dtype(conv.weight)
    scale, shift, *_ = reference_ops.batch_norm_affine(
        mean.to(dtype), var.to(dtype), bn.weight, bn.bias, bn.eps, 0
    )
    weight = (conv.weight * scale[:, None, None, None]).to(conv.weight.dtype)
    return FoldedConv(
        weight,
        shift.to(weight.dtype),
        torch.ones_like(scale),
        shift,
        conv.kernel_size[0],
        conv.stride[0],
        layer.padding,
        conv.dilation[0],
        layer.activation,
    )


def taps_first(conv: FoldedConv) -> FoldedConv:
    """Lay a depthwise weight [C, 1, K, K] out as [K, K, C], which is how the kernel reads it."""
    taps = conv.weight.flatten(1).t().contiguous()
    return conv._replace(weight=taps.t().unflatten(1, conv.weight.shape[1:]))


def flat(conv: FoldedConv) -> FoldedConv:
    """Make a pointwise weight [C', C, 1, 1] a matrix [C', C]."""
    return conv._replace(weight=conv.weight.flatten(1).contiguous())


def fold_block(block: nn.Module) -> tuple[FoldedConv, FoldedConv]:
    """Fold both layers of a block and lay their weights out for the kernels.

    Raises:
        ValueError: the block, or a layer of it, has been replaced.
    """
    require(is_intact(block), "freeze: block", "a SeparableBlock as built", type(block).__name__)
    block = cast("layers.SeparableBlock", block)
    return taps_first(fold(block.depthwise)), flat(fold(block.pointwise))


def copy_classifier(classifier: nn.Module) -> tuple[Tensor, ...]:
    """Copy the weight, and the bias if there is one; nothing for Identity."""
    known = type(classifier) in (nn.Linear, nn.Identity)
    got = type(classifier).__name__
    require(known, "freeze: classifier", "nn.Linear or nn.Identity", got)
    return tuple(parameter.detach().clone() for parameter in classifier.parameters())
