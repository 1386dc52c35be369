"""MobileNet's building blocks from stock torch.nn: the baseline, and what nn.py fuses.

Each owns a real nn.Conv2d `conv` and nn.BatchNorm2d `bn`, so state dicts, optimizers and
convert_sync_batchnorm find what they expect. nn.py's classes only replace `forward`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .batch_norm import ACTIVATIONS
from .checks import check_padding, require
from .geometry import Conv, Padding, conv_geometry
from .reference import activate


class ConvBNReLU(nn.Module):
    """Convolution without bias, BatchNorm, activation.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, square.
        stride: step in both axes.
        padding: zeros on every side, or (left, right, top, bottom), or "same" for TensorFlow's
            SAME, whose padding depends on the size of the input.
        dilation: distance of the taps in both axes.
        groups: as in nn.Conv2d.
        activation: "relu", "relu6" or None.
        eps: of BatchNorm.
        momentum: of BatchNorm; None averages over all batches.

    Shape: [N, C, H, W] to [N, C', H', W'].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Padding = 0,
        dilation: int = 1,
        groups: int = 1,
        activation: str | None = "relu6",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_padding(name, padding)
        names = list(ACTIVATIONS)
        require(activation in names, f"{name}: activation", f"in {names}", activation)
        self.padding = padding
        self.activation = activation
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=padding if isinstance(padding, int) else 0,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum)

    def geometry(self, size: Sequence[int]) -> Conv:
        """Resolve the padding for a map of a size (height, width)."""
        conv = self.conv
        return conv_geometry(
            size, conv.kernel_size[0], conv.stride[0], self.padding, conv.dilation[0]
        )

    def pad(self, input: Tensor) -> Tensor:
        """Add the zeros that `conv` does not add by itself."""
        if isinstance(self.padding, int):
            return input
        return F.pad(input, self.geometry(input.shape[2:]).padding)

    def forward(self, input: Tensor) -> Tensor:
        """act(bn(conv(input)))."""
        return activate(self.bn(self.conv(self.pad(input))), ACTIVATIONS[self.activation])

    def extra_repr(self) -> str:
        """Show what the children do not."""
        return f"padding={self.padding!r}, activation={self.activation!r}"


class DepthwiseConvBNReLU(ConvBNReLU):
    """Depthwise convolution, BatchNorm, activation.

    Args:
        channels: C.
        kernel_size: K, square.
        stride: step in both axes.
        padding: as in ConvBNReLU.
        dilation: distance of the taps in both axes.
        depth_multiplier: outputs per input channel.
        activation: "relu", "relu6" or None.
        eps: of BatchNorm.
        momentum: of BatchNorm; None averages over all batches.

    Shape: [N, C, H, W] to [N, C * depth_multiplier, H', W'].
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: Padding = 1,
        dilation: int = 1,
        depth_multiplier: int = 1,
        activation: str | None = "relu6",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__(
            channels,
            channels * depth_multiplier,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=channels,
            activation=activation,
            eps=eps,
            momentum=momentum,
        )


class PointwiseConvBNReLU(ConvBNReLU):
    """1x1 convolution, BatchNorm, activation.

    Args:
        in_channels: C.
        out_channels: C'.
        activation: "relu", "relu6" or None.
        eps: of BatchNorm.
        momentum: of BatchNorm; None averages over all batches.

    Shape: [N, C, H, W] to [N, C', H, W].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        activation: str | None = "relu6",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, 1, activation=activation, eps=eps, momentum=momentum
        )


def is_as_built(layer: ConvBNReLU) -> bool:
    """Tell whether a layer's convolution, which may have been changed, is one that it builds.

    Then the first of its sizes and strides, its groups and the layer's padding say what it does.
    """
    conv, pad = layer.conv, layer.padding if isinstance(layer.padding, int) else 0
    if type(conv) is not nn.Conv2d or conv.bias is not None:
        return False
    if isinstance(layer, DepthwiseConvBNReLU) and conv.groups != conv.in_channels:
        return False
    size, stride, groups = conv.kernel_size, conv.stride, conv.groups
    if isinstance(layer, PointwiseConvBNReLU) and (size, stride, groups) != ((1, 1), (1, 1), 1):
        return False
    if (conv.padding, conv.padding_mode) != ((pad, pad), "zeros"):
        return False
    return _is_square(size) and _is_square(stride) and _is_square(conv.dilation)


def _is_square(pair: object) -> bool:
    """Tell whether both are the same; one number for both would do for torch only."""
    return isinstance(pair, tuple) and pair == pair[:1] * 2


class SeparableBlock(nn.Module):
    """Depthwise, then pointwise convolution, each with BatchNorm and activation.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: of the depthwise convolution, square.
        stride: of the depthwise convolution.
        padding: of the depthwise convolution, as in ConvBNReLU.
        dilation: of the depthwise convolution.
        depth_multiplier: depthwise outputs per input channel.
        activation: "relu", "relu6" or None.
        eps: of both BatchNorms.
        momentum: of both BatchNorms; None averages over all batches.

    Shape: [N, C, H, W] to [N, C', H', W'].
    """

    depthwise_type = DepthwiseConvBNReLU
    pointwise_type = PointwiseConvBNReLU

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: Padding = 1,
        dilation: int = 1,
        depth_multiplier: int = 1,
        activation: str | None = "relu6",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        self.depthwise = self.depthwise_type(
            in_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            depth_multiplier=depth_multiplier,
            activation=activation,
            eps=eps,
            momentum=momentum,
        )
        self.pointwise = self.pointwise_type(
            in_channels * depth_multiplier,
            out_channels,
            activation=activation,
            eps=eps,
            momentum=momentum,
        )

    def forward(self, input: Tensor) -> Tensor:
        """pointwise(depthwise(input))."""
        output: Tensor = self.pointwise(self.depthwise(input))
        return output
