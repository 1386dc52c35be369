"""Finds the network that fits a file's tensors, from nothing but their shapes.

Channels are int(filters * alpha) for filters 32 to 1024, all powers of two times 32, so those of
the last block, int(1024 * alpha), decide all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from ..model import BLOCKS
from .checkpoint import StoredTensor
from .errors import WeightsError

LAST_FILTERS = BLOCKS[-1][1]
LAST = f"blocks.{len(BLOCKS) - 1}.pointwise.conv.weight"


def infer_architecture(source: str, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Return the constructor's arguments that shapes tell: sizes, but no padding or epsilon.

    Args:
        source: of the tensors, for messages.
        tensors: under this package's names, in torch's layout.

    Returns:
        num_classes (0 without a classifier), alpha, in_channels and depth_multiplier.

    Raises:
        WeightsError: a tensor that tells a size is missing or has another number of dimensions.
    """
    stem = _shape(source, tensors, "stem.conv.weight", 4)
    depthwise = _shape(source, tensors, "blocks.0.depthwise.conv.weight", 4)
    last = _shape(source, tensors, LAST, 4)
    classes = 0
    if "classifier.weight" in tensors:
        classes = _shape(source, tensors, "classifier.weight", 2)[0]
    return {
        "num_classes": classes,
        "alpha": width_multiplier(last[0]),
        "in_channels": stem[1],
        "depth_multiplier": max(1, depthwise[0] // max(1, stem[0])),
    }


def width_multiplier(channels: int) -> float:
    """Return the shortest decimal alpha with int(1024 * alpha) = channels."""
    for digits in range(10):
        alpha = ceil(channels / LAST_FILTERS * 10**digits) / 10**digits
        if int(LAST_FILTERS * alpha) == channels:
            return alpha
    return channels / LAST_FILTERS


def _shape(
    source: str, tensors: Mapping[str, StoredTensor], name: str, dimensions: int
) -> tuple[int, ...]:
    if name not in tensors:
        raise WeightsError(f"{source}: missing: {name}")
    shape = tensors[name].shape
    if len(shape) != dimensions:
        raise WeightsError(
            f"{source}: {name}: expected {dimensions} dimensions, found shape {list(shape)}"
        )
    return shape
