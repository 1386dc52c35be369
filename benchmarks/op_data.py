"""Random tensors for the ops at a layer of the network."""

from dataclasses import dataclass

import torch
from layers import Layer
from points import DTYPES
from torch import Tensor

# A gradient's size: with larger ones a sum over 3 million pixels would overflow float16.
GRADIENT = 1e-3


@dataclass(frozen=True)
class Setting:
    """What all cases of a run share."""

    batch: int
    dtype: str
    device: str
    layout: str = "channels_last"  # of all maps, or contiguous: NCHW


class Data:
    """Random tensors of one layer on the device, in the layout, always the same ones."""

    def __init__(self, layer: Layer, setting: Setting) -> None:
        """Seed a generator on the device."""
        self.layer, self.setting = layer, setting
        self.dtype = DTYPES[setting.dtype]
        self._generator = torch.Generator(setting.device).manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """Return float32 values."""
        return torch.randn(shape, generator=self._generator, device=self.setting.device)

    def map(self, size: int) -> Tensor:
        """Return [N, C, size, size] in the storage type, with a mean that is not 0."""
        values = self.normal(self.setting.batch, size, size, self.layer.channels)
        values = values.add_(0.5).to(self.dtype).permute(0, 3, 1, 2)
        return values.contiguous() if self.setting.layout == "contiguous" else values

    def input(self) -> Tensor:
        """Return what the layer reads."""
        return self.map(self.layer.size)

    def output(self) -> Tensor:
        """Return something of the shape that the layer writes."""
        return self.map(self.layer.size // self.layer.stride)

    def gradient(self, like: Tensor) -> Tensor:
        """Return a gradient of a map."""
        return (like * GRADIENT).to(self.dtype)

    def gradient_terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three vectors of a BatchNorm's backward."""
        small = GRADIENT * self.normal(2, self.layer.channels)
        return self.scale(), small[0] * 0.1, small[1]

    def weight(self) -> Tensor:
        """Return [C, 1, 3, 3]."""
        return self.normal(self.layer.channels, 1, 3, 3).to(self.dtype)

    def scale(self) -> Tensor:
        """Return [C] around 2."""
        return self.normal(self.layer.channels) * 0.5 + 2

    def shift(self) -> Tensor:
        """Return [C] around 1: with `scale`, values reach both ends of ReLU6."""
        return self.normal(self.layer.channels) + 1

    def geometry(self) -> tuple[int, ...]:
        """Return stride, padding and dilation as the ops take them."""
        return (self.layer.stride, *self.layer.padding, 1)
