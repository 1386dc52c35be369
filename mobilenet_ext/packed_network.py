"""A folded network in the form that the whole-network op takes."""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import (
    _library,  # noqa: F401  (it defines the op)
    packing,
)
from .batch_norm import ACTIVATIONS
from .geometry import padding_columns

if TYPE_CHECKING:
    from .folding import FoldedConv

_HUGE_PAGE = 2 * 1024 * 1024
MOST_BLOCKS, MOST_PADDING = 32, 2  # of the op

_op = torch.ops.mobilenet_ext.mobilenet.default


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
        spatial = [stem, *(first for first, _ in blocks)]
        filters = [conv.weight.shape[0] for conv in (stem, *(last for _, last in blocks))]
        channels = [stem.weight.shape[1], *filters[:-1]]
        rows = [
            [before, after, conv.stride, *padding_columns(conv.padding)]
            for conv, before, after in zip(spatial, channels, filters, strict=True)
        ]
        outputs = filters[-1]
        if classifier:
            weight, *biases = classifier
            outputs = weight.shape[0]
            bias = biases[0] if biases else weight.new_zeros(outputs)
            parts.append(packing.pack_matrix(weight, bias))
        activation = ACTIVATIONS[stem.activation]
        # After the input, in the op's order: by name the call would take longer.
        self.arguments = (
            _join(parts), torch.tensor(rows, device="cpu"), outputs, bool(classifier), activation
        )  # fmt: skip

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
            and len(blocks) <= MOST_BLOCKS
            and all(map(_is_held, spatial))
            and len({conv.activation for conv in convs}) == 1
        )

    def run(self, input: Tensor) -> Tensor:
        """Logits or pooled features [N, outputs] of an input [N, C, H, W], float32 on the CPU.

        They know no gradients.
        """
        if input.requires_grad:
            input = input.detach()
        output: Tensor = _op(input, *self.arguments)
        return output

    def __getstate__(self) -> dict[str, Any]:
        """Leave what lies around the weights out of pickles and deep copies."""
        weight, *rest = self.arguments
        return {**self.__dict__, "arguments": (weight.clone(), *rest)}


def _is_held(conv: FoldedConv) -> bool:
    """Tell whether the op computes the stem or a depthwise convolution."""
    known = conv.kernel_size == 3 and conv.stride in (1, 2) and conv.dilation == 1
    return known and max(padding_columns(conv.padding)) <= MOST_PADDING


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
