"""From a folder to a source: what is in it decides."""

import pathlib

import torch

from .cifar10 import CLASSES, load_cifar10
from .folder import TRAINING_FOLDER, FolderSource
from .source import Source, TensorSource


def open_training(
    directory: pathlib.Path,
    *,
    resolution: int = 224,
    crop_scale: float = 0.35,
    workers: int = 0,
    device: str | torch.device = "cpu",
) -> Source:
    """Return CIFAR-10 or, where there is a folder `train`, the images in it.

    The options but for `device` are those of FolderSource and concern folders only.

    Raises:
        DataError: It is neither, or not complete.
    """
    if (directory / TRAINING_FOLDER).is_dir():
        return FolderSource(
            directory, resolution, crop_scale=crop_scale, workers=workers, device=device
        )
    training = load_cifar10(directory, train=True)
    return TensorSource(training, load_cifar10(directory, train=False), CLASSES, device)
