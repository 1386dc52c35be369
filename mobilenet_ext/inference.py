"""Inference with BatchNorm folded away: FrozenMobileNet, which FusedMobileNet keeps one of too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import dispatch, layers, stem
from .batch_norm import ACTIVATIONS
from .checks import require
from .cuda_graphs import CudaGraphs
from .folding import FoldedConv, copy_classifier, fold, fold_block
from .model import FEATURE_BLOCKS, MobileNet
from .nn import ConvBNReLU
from .packed_network import PackedNetwork
from .preprocessing import Described

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FrozenMobileNet"]

_NEEDS_CUDA = "on a CUDA device for cuda_graph=True"


class FrozenMobileNet(Described, nn.Module):
    """Inference-only copy of a MobileNet or FusedMobileNet, as `freeze()` returns it.

    Owns folded weights, which later changes of the model do not reach, and never records gradients.
    On the CPU in float32 one op runs all layers; other dtypes and devices, dilated networks,
    feature maps, depth multipliers, strides and paddings above 2 and more than 32 blocks go layer
    by layer. It has no parameters and an empty state dict: save the model, or pickle this one
    whole. `.to()` moves and casts it; autocast does not change what it computes in. Its mode does
    not matter.

    With `cuda_graph` the first call with an input of some shape and dtype captures the network in a
    CUDA graph, and later calls replay that: one launch, where small batches spend most of their
    time on some forty. It is for a few fixed shapes, since each keeps its own graph and
    activations. A call copies its input into the graph's memory and returns a copy of the output.
    `.to()` forgets the graphs, and so do pickles and deep copies; all capture again when called.

    Args:
        model: where the weights come from.
        cuda_graph: replay a CUDA graph for each shape of the input.

    Raises:
        ValueError: a layer was replaced or edited, or has no running statistics; or with
            `cuda_graph` the model is not on a CUDA device.
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
            kind = type(model.stem)
            known = kind in (layers.ConvBNReLU, ConvBNReLU)
            require(known, "freeze: stem", "a ConvBNReLU as built", kind.__name__)
            dropout = type(model.dropout)
            known = dropout in (nn.Dropout, nn.Identity)
            require(known, "freeze: dropout", "nn.Dropout or nn.Identity", dropout.__name__)
            self._stem = fold(model.stem)
            self._stem_matrix = stem.weight_matrix(self._stem.weight)
            self._blocks = [fold_block(block) for block in model.blocks]
            self._classifier = copy_classifier(model.classifier)
            self._packed = self._pack()

    def forward(self, input: Tensor) -> Tensor | list[Tensor]:
        """Logits [N, num_classes], pooled features without a classifier, or the feature maps.

        Raises:
            ValueError: the input is not [N, in_channels, H, W]; or with `cuda_graph` it is not on
                the CUDA device of the model, or autocast is on.
        """
        if torch.compiler.is_compiling():
            self._check_input(input)  # a trace does not meet the op's errors
        packed = self._packed
        if packed is not None and input.is_cpu and input.dtype == torch.float32:
            try:
                return packed.run(input)
            except RuntimeError:
                self._check_input(input)  # only now, as it takes time; it says more than the op
                raise
        return self._forward_by_graph(input) if self._has_graphs else self._forward_by_layers(input)

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
        with dispatch.without_autocast(input.device):
            features = self.forward_features(input)
            if isinstance(features, list):
                return features
            pooled = features.mean((2, 3))
            return F.linear(pooled, *self._classifier) if self._classifier else pooled

    @torch.no_grad()
    def forward_features(self, input: Tensor) -> Tensor | list[Tensor]:
        """Last activated map, or the list of maps if features_only; never by a graph."""
        with dispatch.without_autocast(input.device):
            return self._forward_features(input)

    def _forward_features(self, input: Tensor) -> Tensor | list[Tensor]:
        self._check_input(input)
        x = input.contiguous(memory_format=torch.channels_last)
        fused = dispatch.device_has_kernels(input.device)
        # What a library has computed passes raw to the next depthwise kernel, which activates it on
        # load: that is a pass less over each map.
        raw, before = self._convolve_stem(x), self._stem
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

    def _convolve_stem(self, x: Tensor) -> Tensor:
        conv = self._stem
        if conv.dilation == 1 and stem.has_patches(x.device, conv.kernel_size, self.in_channels):
            return stem.multiply(x, self._stem_matrix, conv.kernel_size, conv.geometry(x))
        return _convolve(x, conv)

    def _check_input(self, input: Tensor) -> None:
        require(
            input.dim() == 4 and input.shape[1] == self.in_channels,
            "FrozenMobileNet: input",
            f"[N, C, H, W] with C = {self.in_channels}",
            list(input.shape),
        )

    def _pack(self) -> PackedNetwork | None:
        """Pack the weights for the op that runs all layers at once, where there is one."""
        one_op = not self._has_graphs and not self.features_only
        if not one_op or not PackedNetwork.can_hold(self._stem, self._blocks):
            return None
        return PackedNetwork(self._stem, self._blocks, self._classifier)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._graphs = None
        self._stem = self._stem.map(fn)
        self._stem_matrix = fn(self._stem_matrix)
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
