"""The units in stock PyTorch, as anybody would write them.

Their specification, and the fallback for what the kernels do not take; the ops are
in reference_ops. Tensors are [N, C, H, W], vectors [C]. Convolutions run in the input's dtype,
everything about BatchNorm in float32 (float64 for float64), and any depth multiplier is taken.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .batch_norm import ACTIVATIONS
from .geometry import Conv, Padding, conv_geometry

NONE, RELU, RELU6 = ACTIVATIONS.values()


def depthwise_conv(
    input: Tensor, weight: Tensor, *, stride: int = 1, padding: Padding = 1, dilation: int = 1
) -> Tensor:
    """Depthwise convolution with a padding rule; weight [C * multiplier, 1, K, K]."""
    return conv2d(
        input, weight, conv_geometry(input.shape[2:], weight.shape[2], stride, padding, dilation)
    )


def bn_relu(
    input: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | None = "relu6",
) -> Tensor:
    """act(batch_norm(input)), moving the running statistics when training."""
    y = F.batch_norm(input, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    return activate(y, ACTIVATIONS[activation])


def activate(x: Tensor, activation: int) -> Tensor:
    """Nothing, max(x, 0), or min(max(x, 0), 6); NaN stays NaN."""
    return {NONE: lambda x: x, RELU: F.relu, RELU6: F.relu6}[activation](x)


def conv2d(input: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """Depthwise convolution; weight [C * multiplier, 1, K, K]."""
    padded = F.pad(input, conv.padding)
    groups = input.shape[1]
    return F.conv2d(padded, weight, None, conv.stride, 0, conv.dilation, groups)
