"""Modules with fused forwards; their children, names and state dicts are those of layers.py.

The children hold the parameters and are not called. Where calling them matters, a module runs the
stock path through them instead: when one has hooks (pruning uses them) or a forward of its own,
when one is not exactly nn.Conv2d and nn.BatchNorm2d or nn.SyncBatchNorm (a parametrised, quantised
or folded layer), when the convolution has a bias or a depth multiplier or is not as the layer
builds it, on devices without kernels, and while torch.export or torch.jit.trace record. Hooks
registered globally on all modules do not count: they see the modules that run.

A BatchNorm child in eval mode is frozen: its running statistics normalise, gradients still flow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import dispatch, functional, layers
from .batch_norm import BatchNorm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["ConvBNReLU", "DepthwiseConvBNReLU", "PointwiseConvBNReLU", "SeparableBlock"]


class ConvBNReLU(layers.ConvBNReLU):
    """Any convolution, by torch, then BatchNorm and activation in one pass.

    Takes the arguments of layers.ConvBNReLU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """act(bn(conv(input))), BatchNorm and activation by functional.bn_relu."""
        if not can_fuse(self, input):
            return super().forward(input)
        count_batch(self.bn)
        bn = read_batch_norm(self.bn, self.activation)
        return normalise(functional.RawMap(self.conv(self.pad(input))), bn)


class DepthwiseConvBNReLU(layers.DepthwiseConvBNReLU):
    """Depthwise convolution, BatchNorm and activation as one unit.

    Takes the arguments of layers.DepthwiseConvBNReLU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """act(bn(conv(input))) by functional.depthwise_conv_bn_relu, or through the children."""
        if not can_fuse(self, input):
            return super().forward(input)
        count_batch(self.bn)
        conv, bn = self.conv, read_batch_norm(self.bn, self.activation)
        return functional.depthwise_conv_bn_relu(
            input,
            conv.weight,
            *bn[:4],
            stride=conv.stride[0],
            padding=self.padding,
            dilation=conv.dilation[0],
            training=bn.training,
            momentum=bn.momentum,
            eps=bn.eps,
            activation=bn.activation,
            process_group=bn.process_group,
        )


class PointwiseConvBNReLU(layers.PointwiseConvBNReLU):
    """1x1 convolution as a matrix product, then BatchNorm and activation in one pass.

    Takes the arguments of layers.PointwiseConvBNReLU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """act(bn(conv(input))): a matrix product and functional.bn_relu, or the children."""
        if not can_fuse(self, input):
            return super().forward(input)
        count_batch(self.bn)
        bn = read_batch_norm(self.bn, self.activation)
        raw = functional.pointwise_conv(input, self.conv.weight, statistics=bn.training)
        return normalise(raw, bn)


class SeparableBlock(layers.SeparableBlock):
    """Depthwise, then pointwise convolution, each with BatchNorm and activation.

    Takes the arguments of layers.SeparableBlock.
    """

    depthwise_type = DepthwiseConvBNReLU
    pointwise_type = PointwiseConvBNReLU


def is_exporting() -> bool:
    """Tell whether the graph being recorded should hold stock ops, to run without this package."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return tracing or torch.compiler.is_exporting()


def has_hooks(module: nn.Module) -> bool:
    """Tell whether calling the module runs more than its class's forward, or another."""
    return bool(
        has_own_forward(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def has_own_forward(module: nn.Module) -> bool:
    """Tell whether a forward was assigned to the module, as some libraries do to wrap it."""
    return "forward" in vars(module)


def can_fuse(layer: layers.ConvBNReLU, input: Tensor) -> bool:
    """Tell whether the fused forward computes what calling the children would."""
    return (
        not is_exporting()
        and is_plain(layer)
        and not has_hooks(layer.conv)
        and not has_hooks(layer.bn)
        and dispatch.device_has_kernels(input.device)
    )


def is_plain(layer: layers.ConvBNReLU) -> bool:
    """Tell whether a layer's children are what the kernels stand in for."""
    conv, bn = layer.conv, layer.bn
    return (
        type(bn) in (nn.BatchNorm2d, nn.SyncBatchNorm)
        and layers.is_as_built(layer)
        and conv.groups in (1, conv.out_channels)
    )


def is_intact(block: nn.Module) -> bool:
    """Tell whether a block is still the depthwise and pointwise layer that it was built as."""
    return (
        type(block) in (layers.SeparableBlock, SeparableBlock)
        and type(block.depthwise) in (layers.DepthwiseConvBNReLU, DepthwiseConvBNReLU)
        and type(block.pointwise) in (layers.PointwiseConvBNReLU, PointwiseConvBNReLU)
    )


def count_batch(bn: nn.modules.batchnorm._BatchNorm) -> None:
    """Count a forward of a BatchNorm module, as torch does."""
    count(counters([bn]))


def counters(norms: Iterable[nn.modules.batchnorm._BatchNorm]) -> list[Tensor]:
    """Return those of the BatchNorm modules that count batches in their mode."""
    found = (
        bn._buffers["num_batches_tracked"] for bn in norms if bn.training and bn.track_running_stats
    )
    return [counter for counter in found if counter is not None]


def count(counters: list[Tensor]) -> None:
    """Count a batch."""
    if counters:
        torch._foreach_add_(counters, 1)


def read_batch_norm(bn: nn.modules.batchnorm._BatchNorm, activation: str | None) -> BatchNorm:
    """Take a BatchNorm module's tensors and options for a forward that has been counted."""
    mean, var = bn._buffers["running_mean"], bn._buffers["running_var"]
    training, tracks = bn.training, bn.track_running_stats
    momentum: float | Tensor = 0.0 if bn.momentum is None else bn.momentum
    if bn.momentum is None and training and tracks and bn.num_batches_tracked is not None:
        momentum = bn.num_batches_tracked.double().reciprocal()
    keeps = tracks or not training
    return BatchNorm(
        bn.weight,
        bn.bias,
        mean if keeps else None,
        var if keeps else None,
        training or (mean is None and var is None),
        momentum,
        bn.eps,
        activation,
        sync_group(bn),
    )


def normalise(raw: functional.RawMap, bn: BatchNorm) -> Tensor:
    """BatchNorm and activation of a raw convolution output."""
    group, statistics = bn.process_group, raw.statistics
    return functional.bn_relu(
        raw.tensor, **bn.arguments, process_group=group, statistics=statistics
    )


def sync_group(bn: nn.Module) -> ProcessGroup | None:
    """Return the ranks that a training SyncBatchNorm shares its statistics with, if any."""
    if not isinstance(bn, nn.SyncBatchNorm) or not bn.training:
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = bn.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None
