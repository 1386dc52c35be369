"""Images with labels to evaluate a network on, in its own preprocessing and its own classes."""

import pathlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..model import MobileNet
from ..preprocessing import Preprocessing
from .cifar10 import CLASSES, SIZE, load_cifar10
from .errors import DataError
from .folder import torchvision, validation_folder
from .source import Batch


def labelled_batches(
    model: MobileNet, directory: pathlib.Path, batch_size: int, workers: int = 0
) -> Iterator[Batch]:
    """Yield images [N, 3, R, R], ready for the network, and the network's labels [N].

    Args:
        model: One that knows its preprocessing.
        directory: CIFAR-10's binary layout (the test batch is taken), a folder with `val` in it,
            or one with a folder a class.
        batch_size: Images at once.
        workers: Processes that decode images; 0: none but this one.

    Raises:
        DataError: There are no images, or their classes are not the network's.
    """
    preprocessing = model.preprocessing
    if preprocessing is None:
        raise DataError(f"{directory}: the model does not say how images are prepared for it")
    if not directory.is_dir():
        raise DataError(f"{directory}: expected a folder of images, got nothing there")
    folder = validation_folder(directory)
    if folder is None and is_cifar(directory):
        yield from _cifar(model, directory, batch_size, preprocessing)
        return
    try:
        files = torchvision().datasets.ImageFolder(folder or directory, model.transforms())
    except FileNotFoundError as error:
        raise DataError(f"{folder or directory}: {error}") from error
    table = match_classes(files.classes, model)
    for images, labels in DataLoader(files, batch_size, num_workers=workers):
        yield images, table[labels]


def is_cifar(directory: pathlib.Path) -> bool:
    """Tell whether there are files in CIFAR-10's binary layout."""
    return any(directory.glob("*.bin")) or (directory / "cifar-10-batches-bin").is_dir()


def _cifar(
    model: MobileNet, directory: pathlib.Path, batch_size: int, preprocessing: Preprocessing
) -> Iterator[Batch]:
    images, labels = load_cifar10(directory, train=False)
    table = match_classes(CLASSES, model)
    fits = preprocessing.resolution == SIZE
    prepare = preprocessing.normalize if fits else preprocessing.transform()
    for part, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        yield prepare(part), table[truth]


def match_classes(classes: Sequence[str], model: MobileNet) -> Tensor:
    """Return the network's label of each of the data's classes [K], by name where it has names.

    Raises:
        DataError: The network lacks a class, or there are not as many.
    """
    count = model.config["num_classes"]
    if model.class_names is None:
        if len(classes) != count:
            raise DataError(f"the model has {count} classes, the data {len(classes)}")
        return torch.arange(count)
    places = {name: place for place, name in enumerate(model.class_names)}
    unknown = [name for name in classes if name not in places]
    if unknown:
        raise DataError(f"the model does not know the data's classes {', '.join(unknown[:5])}")
    return torch.tensor([places[name] for name in classes])
