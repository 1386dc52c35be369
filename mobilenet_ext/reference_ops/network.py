"""Whole-network inference."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .. import packing
from ..geometry import conv_geometry, padding_rule
from ..reference import activate


def mobilenet(
    input: Tensor,
    weight: Tensor,
    layers: Tensor,
    outputs: int,
    has_classifier: bool,
    activation: int,
) -> Tensor:
    """A stem and separable blocks with BatchNorm folded in, average pooling, a classifier.

    Args:
        input: [N, C, H, W].
        weight: all weights and biases, packed one after the other as packing.py has it.
        layers: [L, 7], int64; the stem, then the blocks: channels in and out, stride of the 3x3
            convolution, its padding at the left, right, top and bottom; four times -1 is
            TensorFlow's SAME.
        outputs: size of the result.
        has_classifier: otherwise the pooled features are the result.
        activation: after every convolution.

    Returns:
        [N, outputs].
    """
    x, rest = input, weight
    for index, (channels, filters, stride, *columns) in enumerate(layers.tolist()):
        padding = conv_geometry(x.shape[2:], 3, stride, padding_rule(columns), 1).padding
        if index == 0:
            matrix, bias, rest = packing.unpack_matrix(rest, filters, 9 * channels)
            kernel = matrix.reshape(filters, 3, 3, channels).permute(0, 3, 1, 2)
            x = activate(F.conv2d(F.pad(x, padding), kernel, bias, stride), activation)
            continue
        kernel, bias, rest = packing.unpack_depthwise(rest, channels)
        x = F.conv2d(F.pad(x, padding), kernel, bias, stride, groups=channels)
        matrix, bias, rest = packing.unpack_matrix(rest, filters, channels)
        x = activate(F.conv2d(activate(x, activation), matrix[:, :, None, None], bias), activation)
    pooled = x.mean((2, 3))
    if not has_classifier:
        return pooled
    matrix, bias, _ = packing.unpack_matrix(rest, outputs, pooled.shape[1])
    return F.linear(pooled, matrix, bias)
