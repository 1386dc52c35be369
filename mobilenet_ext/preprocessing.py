"""How the images are prepared that a network was trained on, and the names of its classes.

Both are plain attributes of a network, so copies, pickles and `freeze()` keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from .checks import require

__all__ = ["Preprocessing"]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
MAX_SIZE = 2**16


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1], then (x - mean) / std for each channel.

    The defaults for mean and std are x / 127.5 - 1 on bytes, as Keras, TF-slim, Hugging Face and
    timm have it for MobileNetV1.

    Args:
        resolution: height and width of the crop, which is what the network sees.
        resize: length that the image's shorter side gets first; None: `resolution`.
        interpolation: "nearest", "bilinear" or "bicubic", with antialiasing.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].

    Raises:
        ValueError: an argument is out of range.
    """

    resolution: int
    resize: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        def check(field: str, valid: bool, expected: str) -> None:
            require(valid, f"Preprocessing: {field}", expected, getattr(self, field))

        def is_size(value: object) -> bool:
            return isinstance(value, int) and 1 <= value <= MAX_SIZE

        check("resolution", is_size(self.resolution), f"an int from 1 to {MAX_SIZE}")
        check("resize", self.resize is None or is_size(self.resize), "None or a size")
        known = self.interpolation in INTERPOLATIONS
        check("interpolation", known, f"one of {INTERPOLATIONS}")
        for field in ("mean", "std"):
            object.__setattr__(self, field, tuple(map(float, getattr(self, field))))
        check("mean", all(map(isfinite, self.mean)), "finite")
        positive = all(isfinite(value) and value > 0 for value in self.std)
        check("std", positive and len(self.std) == len(self.mean), "positive, as many as mean has")

    def at(self, resolution: int) -> Preprocessing:
        """Return the same for another resolution, with the same share of the image cropped."""
        resize = self.resize
        if resize is not None:
            resize = int(resize * resolution / self.resolution)
        return replace(self, resolution=resolution, resize=resize)

    def normalize(self, images: Tensor) -> Tensor:
        """Map pixels [N, C, H, W], uint8 or floats in [0, 1], to what the network takes."""
        scale = 1.0 if images.is_floating_point() else 255.0
        mean, std = (
            torch.tensor(values, device=images.device).mul_(scale).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return images.to(torch.get_default_dtype()).sub(mean).div_(std)

    def transform(self) -> Callable[..., Tensor]:
        """Return the torchvision v2 transform: a PIL image or uint8 [..., C, H, W] to floats.

        Raises:
            ImportError: torchvision is not installed.
        """
        try:
            from torchvision.transforms import v2
        except ImportError as error:
            raise ImportError(
                "transforms() needs torchvision: pip install 'mobilenet_ext[weights]'"
            ) from error
        steps = v2.Compose(
            [
                ToRGB(),
                v2.ToImage(),
                v2.Resize(
                    self.resize or self.resolution,
                    interpolation=v2.InterpolationMode(self.interpolation),
                    antialias=True,
                ),
                v2.CenterCrop(self.resolution),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(self.mean, self.std),
                v2.ToPureTensor(),
            ]
        )
        transform: Callable[..., Tensor] = steps
        return transform

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Read back what `to_dict` returned.

        Raises:
            TypeError: an unknown field, or a value of the wrong type.
            ValueError: a value out of range.
        """
        return cls(**fields)


class ToRGB(nn.Module):
    """Convert a PIL image to RGB, so that greyscale and transparent ones work; pass tensors on."""

    def forward(self, image: Any) -> Any:
        """Return the image in RGB."""
        return image.convert("RGB") if hasattr(image, "convert") else image


class Described:
    """What a network knows of its data.

    Attributes:
        class_names: one name for each output, or None.
        preprocessing: of the images it was trained on, or None.
    """

    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None

    def transforms(self, resolution: int | None = None) -> Callable[..., Tensor]:
        """Return the preprocessing that the weights were trained with, as a torchvision transform.

        Args:
            resolution: of the network's input; None: that of the training.

        Raises:
            ValueError: it is not known; set `preprocessing`.
            ImportError: torchvision is not installed.
        """
        if self.preprocessing is None:
            raise ValueError(
                f"{type(self).__name__}: preprocessing must be known for transforms(), got None; "
                "load_pretrained sets it, or assign a Preprocessing"
            )
        chosen = self.preprocessing if resolution is None else self.preprocessing.at(resolution)
        return chosen.transform()
