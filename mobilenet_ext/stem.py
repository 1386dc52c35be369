"""The stem's convolution, a product of patches where that is faster than torch's convolution.

On a CPU an op of ours makes patches tile by tile, in the cache, and counts the statistics of what
it stores. On CUDA patches are written and cuBLAS multiplies: three channels are too few for the
tensor cores of a convolution, and on an H200 what cuDNN ran for the stem took some 0.9 ms of a
training step of 256 images, not counting the copy that pads before it. Patches, 27 values a pixel
and 5 zeros, are written twice there, forward and backward, and never saved.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function
from torch.nn.grad import conv2d_weight

from . import dispatch
from .geometry import Conv, patch_columns
from .layers import ConvBNReLU
from .pointwise import RawMap

_ops = torch.ops.mobilenet_ext
DEVICES_WITH_OP = {"cpu"}
DEVICES_WITH_PATCHES = {"cuda"}
MOST_COLUMNS = 64  # with more, patches are too large, and channels enough for a convolution


def has_patches(device: torch.device, kernel_size: int, channels: int) -> bool:
    """Tell whether patches of so many channels are written for the device's library there."""
    return device.type in DEVICES_WITH_PATCHES and _is_narrow(device, kernel_size, channels)


def _is_narrow(device: torch.device, kernel_size: int, channels: int) -> bool:
    is_narrow = patch_columns(kernel_size, channels) <= MOST_COLUMNS
    return is_narrow and dispatch.device_has_kernels(device)


def _takes_product(image: Tensor, stem: ConvBNReLU) -> bool:
    """Tell whether the stem's convolution of an image [N, C, H, W] is a product of patches here.

    The convolution is as the stem builds it. The product gives no gradient to the image, and
    torch.compile follows torch's convolution only.
    """
    conv = stem.conv
    return (
        not torch.compiler.is_compiling()
        and image.device.type in DEVICES_WITH_OP | DEVICES_WITH_PATCHES
        and _is_narrow(image.device, conv.kernel_size[0], image.shape[1])
        and not image.requires_grad
        and (conv.dilation, conv.groups) == ((1, 1), 1)
    )


class ImageConv(NamedTuple):
    """A convolution still to be done, of an image that gets no gradient, as part of a run."""

    image: Tensor
    weight: Tensor
    conv: Conv

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the output, [N, F, H', W']."""
        size = self.conv.output_size(self.image.shape[2:], self.weight.shape[2])
        return (self.image.shape[0], self.weight.shape[0], *size)

    def convolve(self) -> Tensor:
        """Return the output [N, F, H', W'], channels_last, by torch's convolution."""
        padded = F.pad(self.image, self.conv.padding)
        return _channels_last(F.conv2d(padded, self.weight, stride=self.conv.stride))


def start(stem: ConvBNReLU, image: Tensor) -> RawMap | ImageConv:
    """Return the raw output [N, F, H', W'] of the stem, channels_last, or what will give it."""
    if not _takes_product(image, stem):
        return _by_torch(stem, image)
    geometry = stem.geometry(image.shape[2:])
    cast, weight = dispatch.autocast(image), dispatch.autocast(stem.conv.weight)
    if image.device.type in DEVICES_WITH_PATCHES:
        return RawMap(PatchProduct.apply(cast, weight, geometry))
    conv = ImageConv(_one_channel_last(cast), weight, geometry)
    if cast.dtype != weight.dtype or min(conv.shape[2:]) < 1:
        return _by_torch(stem, image)  # which says so before a batch is counted
    return conv


def _by_torch(stem: ConvBNReLU, image: Tensor) -> RawMap:
    return RawMap(_channels_last(stem.conv(stem.pad(image))))


def _one_channel_last(image: Tensor) -> Tensor:
    """Make an image of one channel, dense in both memory formats, count as channels_last."""
    return image.squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2) if image.shape[1] == 1 else image


def _channels_last(map: Tensor) -> Tensor:
    return map.contiguous(memory_format=torch.channels_last)


def weight_matrix(weight: Tensor) -> Tensor:
    """Lay a weight [F, C, K, K] out as [F, columns], in the order of patches."""
    matrix = weight.permute(0, 2, 3, 1).flatten(1)
    columns = patch_columns(weight.shape[2], weight.shape[1])
    return F.pad(matrix, (0, columns - matrix.shape[1]))


def multiply(image: Tensor, matrix: Tensor, kernel_size: int, geometry: Conv) -> Tensor:
    """Convolve an image with a `weight_matrix`; returns a map in channels_last."""
    patches = _patches(image, kernel_size, geometry)
    height, width = geometry.output_size(image.shape[2:], kernel_size)
    pixels = F.linear(patches, matrix).unflatten(0, (image.shape[0], height, width))
    return pixels.permute(0, 3, 1, 2)


def _patches(image: Tensor, kernel_size: int, geometry: Conv) -> Tensor:
    patches: Tensor = _ops.image_patches(image, kernel_size, *geometry[:5])
    return patches


class PatchProduct(Function):
    """The convolution of an image, which gets no gradient, with a weight [F, C, K, K]."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, geometry: Conv) -> Tensor:
        """Write patches and multiply them; only the image is saved."""
        ctx.geometry = geometry
        ctx.save_for_backward(image, weight)
        with dispatch.without_autocast(image.device):
            return multiply(image, weight_matrix(weight), weight.shape[2], geometry)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor | None, None]:
        """Gradient of the weight."""
        image, weight = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return None, None, None
        geometry: Conv = ctx.geometry
        if torch.is_grad_enabled():  # it may be differentiated again: in stock ops
            padded = F.pad(image, geometry.padding)
            return None, conv2d_weight(padded, weight.shape, grad_output, geometry.stride), None
        channels, kernel_size = weight.shape[1:3]
        grad = grad_output.permute(0, 2, 3, 1).flatten(0, 2)
        with dispatch.without_autocast(image.device):
            matrix = grad.t() @ _patches(image, kernel_size, geometry)
        taps = matrix[:, : kernel_size * kernel_size * channels]
        taps = taps.unflatten(1, (kernel_size, kernel_size, channels))
        return None, taps.permute(0, 3, 1, 2).contiguous(), None
