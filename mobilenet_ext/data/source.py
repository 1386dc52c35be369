"""Where batches come from: the interface of the training loop, and a data set in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .augment import augment, normalize
from .sampling import Sampler

Batch = tuple[Tensor, Tensor]  # images [N, 3, H, W], float32; labels [N], int64


@dataclass(frozen=True)
class Augmentation:
    """What happens to a batch on its way into training; validation only takes `pixels`."""

    pixels: str = "symmetric"  # range of the network's input, see normalize
    shift: float = 0.1
    flip: bool = True

    def apply(self, images: Tensor, chance: Tensor) -> Tensor:
        """Return the batch [N, C, H, W], uint8, as the network trains on it."""
        return augment(normalize(images, self.pixels), chance, shift=self.shift, flip=self.flip)


class Source(Protocol):
    """A data set in two halves."""

    classes: tuple[str, ...]
    resolution: int
    resize: int | None  # what the shorter side of a photo becomes before it is cropped

    @property
    def training_count(self) -> int:
        """Images to train on."""

    @property
    def validation_count(self) -> int:
        """Images to validate with."""

    def training(self, sampler: Sampler, augmentation: Augmentation) -> Iterator[Batch]:
        """Yield the sampler's batches, augmented."""

    def validation(
        self, batch_size: int, pixels: str, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Yield every world-th image from the rank-th on, in order."""


class TensorSource:
    """A data set in memory, on the device where it is augmented.

    Args:
        training: Images [N, 3, H, W], uint8, and labels [N], int64.
        validation: The same.
        classes: The names of the labels.
        device: Where the batches are wanted.
    """

    def __init__(
        self,
        training: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor],
        classes: Sequence[str],
        device: str | torch.device = "cpu",
    ) -> None:
        self._training = tuple(part.to(device) for part in training)
        self._validation = tuple(part.to(device) for part in validation)
        self.classes = tuple(classes)
        self.resolution = int(training[0].shape[-1])
        self.resize: int | None = None

    @property
    def training_count(self) -> int:
        """Images to train on."""
        return len(self._training[0])

    @property
    def validation_count(self) -> int:
        """Images to validate with."""
        return len(self._validation[0])

    def training(self, sampler: Sampler, augmentation: Augmentation) -> Iterator[Batch]:
        """Yield the sampler's batches, augmented."""
        images, labels = self._training
        for number, chosen in sampler.batches(len(images)):
            indices = chosen.to(images.device)
            yield augmentation.apply(images[indices], sampler.chance(number)), labels[indices]

    def validation(
        self, batch_size: int, pixels: str, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Yield every world-th image from the rank-th on, in order."""
        halves = (half[rank::world].split(batch_size) for half in self._validation)
        for images, labels in zip(*halves, strict=True):
            yield normalize(images, pixels), labels
