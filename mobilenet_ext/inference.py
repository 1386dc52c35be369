"""Inference with BatchNorm folded away: FrozenMobileNet, and the cache that FusedMobileNet keeps.

A folded convolution is act(conv(x, weight * scale) + shift); batch_norm.py has scale and shift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import dispatch, layers, reference_ops
from .batch_norm import ACTIVATIONS, vector_dtype
from .checks import require
from .cuda_graphs import CudaGraphs
from .geometry import Conv, Padding, conv_geometry
from .model import FEATURE_BLOCKS, MobileNet
from .nn import ConvBNReLU, is_intact
from .packed_network import PackedNetwork
from .preprocessing import Described

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FrozenMobileNet"]

_NEEDS_CUDA = "on a CUDA device for cuda_graph=True"


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
        """Apply what nn.Module.to applies; vectors of 16-bit weights stay float32."""

        def vector(x: Tensor) -> Tensor:
            y = fn(x)
            return y if y.dtype in (torch.float32, torch.float64) else x.to(y.device)

        return self._replace(
            weight=fn(self.weight),
            bias=fn(self.bias),
            scale=vector(self.scale),
            shift=vector(self.shift),
        )


def fold(layer: layers.ConvBNReLU) -> FoldedConv:
    """Fold a layer's BatchNorm into a copy of its convolution.

    Raises:
        ValueError: the layer is not a plain Conv2d and BatchNorm2d with running statistics.
    """
    conv, bn = layer.conv, layer.bn
    plain = type(conv) is nn.Conv2d and type(bn) in (nn.BatchNorm2d, nn.SyncBatchNorm)
    got = f"{type(conv).__name__} and {type(bn).__name__}"
    require(
        plain and conv.bias is None, "freeze: layer", "Conv2d without bias and BatchNorm2d", got
    )
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


class FrozenMobileNet(Described, nn.Module):
    """Inference-only copy of a MobileNet or FusedMobileNet, as `freeze()` returns it.

    Owns folded weights, which later changes of the model do not reach, and never records gradients.
    On the CPU in float32 one op runs all layers; other dtypes and devices, dilated networks,
    feature maps and depth multipliers go layer by layer. It has no parameters and an empty state
    dict: save the model, or pickle this one whole. `.to()` moves and casts it. Its mode does not
    matter.

    With `cuda_graph` the first call with an input of some shape and dtype captures the network in a
    CUDA graph, and later calls replay that: one launch, where small batches spend most of their
    time on some forty. It is for a few fixed shapes, since each keeps its own graph and
    activations. A call copies its input into the graph's memory and returns a copy of the output.
    `.to()` forgets the graphs, and so do pickles and deep copies; all capture again when called.

    Args:
        model: where the weights come from.
        cuda_graph: replay a CUDA graph for each shape of the input.

    Raises:
        ValueError: a layer has been replaced, or has no running statistics; or with `cuda_graph`
            the model is not on a CUDA device.
    """

    def __init__(self, model: MobileNet, *, cuda_graph: bool = False) -> None:
        super().__init__()
        place = model.stem.conv.weight.device
        require(not cuda_graph or place.type == "cuda", "freeze: model", _NEEDS_CUDA, str(place))
        self._has_graphs = cuda_graph
        self._graphs: CudaGraphs | None = None
        self.in_channels = model.stem.conv.in_channels
        self.features_only = model.features_only
        self.class_names, self.preprocessing = model.class_names, model.preprocessing
        with torch.inference_mode(False), torch.no_grad():
            stem = type(model.stem)
            known = stem in (layers.ConvBNReLU, ConvBNReLU)
            require(known, "freeze: stem", "a ConvBNReLU as built", stem.__name__)
            dropout = type(model.dropout)
            known = dropout in (nn.Dropout, nn.Identity)
            require(known, "freeze: dropout", "nn.Dropout or nn.Identity", dropout.__name__)
            self._stem = fold(model.stem)
            self._blocks = [fold_block(block) for block in model.blocks]
            self._classifier = _copy_classifier(model.classifier)
            self._packed = self._pack()

    def forward(self, input: Tensor) -> Tensor | list[Tensor]:
        """Logits [N, num_classes], pooled features without a classifier, or the feature maps.

        Raises:
            ValueError: the input is not [N, in_channels, H, W]; or with `cuda_graph` it is not on
                the CUDA device of the model, or autocast is on.
        """
        if self._has_graphs:
            return self._forward_by_graph(input)
        if self._packed is not None and self._packed.takes(input):
            return self._packed(input)
        return self._forward_by_layers(input)

    def _forward_by_graph(self, input: Tensor) -> Tensor | list[Tensor]:
        self._check_input(input)
        place = self._stem.weight.device
        require(place.type == "cuda", "FrozenMobileNet: model", _NEEDS_CUDA, str(place))
        require(input.device == place, "FrozenMobileNet: input", f"on {place}", str(input.device))
        if self._graphs is None:
            self._graphs = CudaGraphs(self._forward_by_layers)
        return self._graphs(input)

    @torch.no_grad()
    def _forward_by_layers(self, input: Tensor) -> Tensor | list[Tensor]:
        features = self.forward_features(input)
        if isinstance(features, list):
            return features
        pooled = features.mean((2, 3))
        return F.linear(pooled, *self._classifier) if self._classifier else pooled

    @torch.no_grad()
    def forward_features(self, input: Tensor) -> Tensor | list[Tensor]:
        """Last activated map, or the list of maps if features_only; never by a graph."""
        self._check_input(input)
        x = input.contiguous(memory_format=torch.channels_last)
        fused = dispatch.device_has_kernels(input.device)
        # What a library has computed passes raw to the next depthwise kernel, which activates it on
        # load: that is a pass less over each map.
        raw, before = _convolve(x, self._stem), self._stem
        maps = []
        for index, (depthwise, pointwise) in enumerate(self._blocks):
            if fused and depthwise.weight.shape[0] == raw.shape[1]:
                x = _depthwise(raw, before, depthwise)
            else:
                x = _activate(raw, before)
                x = _activate(_convolve(x, depthwise, groups=x.shape[1]), depthwise)
            raw, before = _multiply(x, pointwise), pointwise
            if self.features_only and index in FEATURE_BLOCKS:
                maps.append(_activate(raw, pointwise))
        return maps if self.features_only else _activate(raw, before)

    def _check_input(self, input: Tensor) -> None:
        require(
            input.dim() == 4 and input.shape[1] == self.in_channels,
            "FrozenMobileNet: input",
            f"[N, C, H, W] with C = {self.in_channels}",
            list(input.shape),
        )

    def _pack(self) -> PackedNetwork | None:
        """Pack the weights for the op that runs all layers at once, where there is one."""
        if self.features_only or not PackedNetwork.can_hold(self._stem, self._blocks):
            return None
        return PackedNetwork(self._stem, self._blocks, self._classifier)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._graphs = None
        self._stem = self._stem.map(fn)
        self._blocks = [(dw.map(fn), pw.map(fn)) for dw, pw in self._blocks]
        self._classifier = tuple(map(fn, self._classifier))
        self._packed = self._pack()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the graphs out of pickles and deep copies."""
        return {**self.__dict__, "_graphs": None}

    def extra_repr(self) -> str:
        """Sizes; the weights are no parameters."""
        return f"in_channels={self.in_channels}, blocks={len(self._blocks)}"


def _convolve(x: Tensor, conv: FoldedConv, groups: int = 1) -> Tensor:
    """conv(x) by torch, raw, in channels_last."""
    geometry = conv.geometry(x)
    padded = F.pad(x, geometry.padding) if any(geometry.padding) else x
    raw = F.conv2d(padded, conv.weight, None, conv.stride, 0, conv.dilation, groups)
    return raw.contiguous(memory_format=torch.channels_last)


def _multiply(x: Tensor, conv: FoldedConv) -> Tensor:
    """A raw pointwise convolution, as a matrix product over the pixels of a channels_last map."""
    return F.linear(x.permute(0, 2, 3, 1), conv.weight).permute(0, 3, 1, 2)


def _depthwise(raw: Tensor, before: FoldedConv, conv: FoldedConv) -> Tensor:
    """act(conv(act(raw))) by the depthwise kernel, in one pass; `before` is what gave raw."""
    output: Tensor
    output, _, _ = torch.ops.mobilenet_ext.depthwise_conv(
        raw,
        conv.weight,
        before.scale,
        before.shift,
        ACTIVATIONS[before.activation],
        conv.scale,
        conv.shift,
        ACTIVATIONS[conv.activation],
        False,
        *conv.geometry(raw),
    )
    return output


def _activate(raw: Tensor, conv: FoldedConv) -> Tensor:
    """Add the bias of the convolution that gave raw, and activate."""
    if dispatch.device_has_kernels(raw.device):
        map = (conv.scale, conv.shift, ACTIVATIONS[conv.activation])
        return cast("Tensor", torch.ops.mobilenet_ext.scale_shift_act(raw, *map))
    y = raw + conv.bias[:, None, None]
    if conv.activation is None:
        return y
    return y.relu_() if conv.activation == "relu" else y.clamp_(0, 6)


def _copy_classifier(classifier: nn.Module) -> tuple[Tensor, ...]:
    """Copy the weight, and the bias if there is one; nothing for Identity."""
    known = type(classifier) in (nn.Linear, nn.Identity)
    got = type(classifier).__name__
    require(known, "freeze: classifier", "nn.Linear or nn.Identity", got)
    return tuple(parameter.detach().clone() for parameter in classifier.parameters())
