"""Images to train on: CIFAR-10 or a folder of images, in batches, augmented a batch at a time."""

from .augment import augment, normalize
from .cifar10 import CLASSES, load_cifar10
from .errors import DataError
from .source import Augmentation, Batch, Source, TensorSource

__all__ = [
    "CLASSES",
    "Augmentation",
    "Batch",
    "DataError",
    "Source",
    "TensorSource",
    "augment",
    "load_cifar10",
    "normalize",
]
