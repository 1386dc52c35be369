"""A folded network in the form that the whole-network op takes."""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import (
    _library,  # noqa: F401  (it defines the op)
    packing,
)
from .batch_norm import ACTIVATIONS
from .geometry import conv_geometry

if TYPE_CHECKING:
    from .folding import FoldedConv

_HUGE_PAGE = 2 * 1024 * 1024

_op = torch.ops.mobilenet_ext.mobilenet.default


class Arguments(NamedTuple):
    """What the op takes, in its order: by name the call of a small network takes a tenth longer."""

    input: Tensor
    weight: Tensor
    layers: Tensor
    outputs: int
    has_classifier: bool
    activation: int


class PackedNetwork:
    """What `torch.ops.mobilenet_ext.mobilenet` needs for a network, and the call.

    Args:
        stem: [C', C, 3, 3] and what follows it.
        blocks: depthwise and pointwise convolutions.
        classifier: weight [outputs, C] and bias [outputs], or nothing.
    """

    def __init__(
        self,
        stem: FoldedConv,
        blocks: Sequence[tuple[FoldedConv, FoldedConv]],
        classifier: Sequence[Tensor],
    ) -> None:
        parts = [packing.pack_stem(stem.weight, stem.bias)]
        for depthwise, pointwise in blocks:
            parts.append(packing.pack_depthwise(depthwise.weight, depthwise.bias))
            parts.append(packing.pack_matrix(pointwise.weight, pointwise.bias))
        self._channels = stem.weight.shape[1]
        self._filters = [conv.weight.shape[0] for conv in (stem, *(last for _, last in blocks))]
        outputs = self._filters[-1]
        if classifier:
            weight, *biases = classifier
            outputs = weight.shape[0]
            bias = biases[0] if biases else weight.new_zeros(outputs)
            parts.append(packing.pack_matrix(weight, bias))
        self._weight = _join(parts)
        self._rest = (outputs, bool(classifier), ACTIVATIONS[stem.activation])
        spatial = [stem, *(first for first, _ in blocks)]
        self._steps = [(conv.stride, conv.padding) for conv in spatial]
        self._layers: dict[tuple[int, ...], Tensor] = {}
        self._latest: tuple[torch.Size, Tensor] | None = None  # of an input, and its layers

    @staticmethod
    def can_hold(stem: FoldedConv, blocks: Sequence[tuple[FoldedConv, FoldedConv]]) -> bool:
        """Tell whether the op computes this network: float32 on the CPU, and no odd shapes."""
        channels = stem.weight.shape[0]
        for depthwise, pointwise in blocks:
            if depthwise.weight.shape[0] != channels:
                return False
            channels = pointwise.weight.shape[0]
        spatial = [stem, *(first for first, _ in blocks)]
        convs = [stem, *(conv for block in blocks for conv in block)]
        return (
            stem.weight.device.type == "cpu"
            and stem.weight.dtype == torch.float32
            and all(conv.kernel_size == 3 and conv.dilation == 1 for conv in spatial)
            and len({conv.activation for conv in convs}) == 1
        )

    def __call__(self, input: Tensor) -> Tensor | None:
        """Logits or pooled features [N, outputs] of an input [N, C, H, W].

        They know no gradients. None if the op does not run on this input.
        """
        arguments = self.arguments(input)
        if arguments is None:
            return None
        output: Tensor = _op(*arguments)
        return output

    def arguments(self, input: Tensor) -> Arguments | None:
        """Return the op's arguments, if it runs on this input."""
        layers = self._layers_of(input)
        if layers is None:
            return None
        if input.requires_grad:
            input = input.detach()
        return Arguments(input, self._weight, layers, *self._rest)

    def __getstate__(self) -> dict[str, Any]:
        """Leave what lies around the weights out of pickles and deep copies."""
        return {**self.__dict__, "_weight": self._weight.clone(), "_latest": None}

    def _layers_of(self, input: Tensor) -> Tensor | None:
        """Return the table of layers for a float32 input on the CPU, [N, C, H, W]."""
        if not input.is_cpu or input.dtype != torch.float32:
            return None
        shape, latest = input.shape, self._latest  # read once: another thread may change it
        if latest is not None and shape == latest[0]:
            return latest[1]
        if len(shape) != 4 or shape[1] != self._channels:
            return None
        layers = self._layers.get(shape[1:])
        if layers is None:
            layers = self._layers[shape[1:]] = self._layers_for(shape[1:])
        if not torch.compiler.is_compiling():
            self._latest = (shape, layers)
        return layers

    def _layers_for(self, size: Sequence[int]) -> Tensor:
        """List each layer's channels, stride and padding for inputs [N, *size]."""
        channels, *rest = size
        rows, map_size = [], tuple(rest)
        for (stride, padding), filters in zip(self._steps, self._filters, strict=True):
            conv = conv_geometry(map_size, 3, stride, padding, 1)
            rows.append([channels, filters, stride, *conv.padding])
            map_size, channels = conv.output_size(map_size, 3), filters
        return torch.tensor(rows)


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate float32 vectors on the CPU, in huge pages where the system has them."""
    parts = [part.detach() for part in parts]  # torch.cat takes `out` without gradients only
    if sys.platform != "linux" or type(parts[0]) is not Tensor:
        return torch.cat(parts)
    size = sum(part.numel() for part in parts)
    return torch.cat(parts, out=_empty_in_huge_pages(size))


def _empty_in_huge_pages(size: int) -> Tensor:
    """Return float32 memory of its own: malloc's may have been touched, and keeps its pages."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, 4 * size + _HUGE_PAGE, flags=flags)
    with contextlib.suppress(OSError):  # a system without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    floats = torch.frombuffer(memory, dtype=torch.float32)
    return floats[-floats.data_ptr() % _HUGE_PAGE // 4 :][:size]
