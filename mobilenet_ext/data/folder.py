"""Folders of images, one folder a class, in two halves: DIR/train and DIR/val.

Images are decoded, cropped and scaled in worker processes by torchvision; shifts, mirrors and the
range of the pixels are left to the batch.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .augment import normalize
from .errors import DataError
from .sampling import Sampler, seed_of
from .source import Augmentation, Batch

TRAINING_FOLDER = "train"
VALIDATION_FOLDERS = ("val", "validation", "valid", "test")
CROP_SHARE = 0.875  # of the shorter side that validation looks at, as ImageNet's usual crop


def torchvision() -> Any:
    """Return the package, or say how to install it."""
    try:
        import torchvision
        import torchvision.transforms.v2
    except ImportError as error:
        raise DataError(
            "folders of images need torchvision: pip install 'mobilenet_ext[train]'"
        ) from error
    return torchvision


def validation_folder(directory: pathlib.Path) -> pathlib.Path | None:
    """Return the folder of the images to validate with, if there is one."""
    found = [directory / name for name in VALIDATION_FOLDERS if (directory / name).is_dir()]
    return found[0] if found else None


class Images(Dataset[tuple[Tensor, int]]):
    """Images [3, R, R], uint8, and labels, of a folder with a folder a class.

    An item is asked for by its index and a seed for the chance in its transformation, so that it
    does not matter which worker makes it.
    """

    def __init__(self, folder: pathlib.Path, transform: Callable[[Any], Tensor]) -> None:
        try:
            self._files = torchvision().datasets.ImageFolder(folder)
        except FileNotFoundError as error:
            raise DataError(f"{folder}: {error}") from error
        self._transform = transform
        self.classes: list[str] = self._files.classes

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._files)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        """Return an image and its label."""
        index, seed = item
        path, label = self._files.samples[index]
        try:
            image = self._files.loader(path)  # RGB
        except OSError as error:
            raise DataError(f"{path}: not an image that can be read: {error}") from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._transform(image), label


class FolderSource:
    """A folder of images, see above.

    Args:
        directory: With the folders of both halves.
        resolution: Height and width of the network's input.
        crop_scale: Least share of the area that a random crop keeps; 1: the middle, no chance.
        workers: Processes that prepare images; 0: none but this one.
        device: Where batches are augmented.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        resolution: int = 224,
        *,
        crop_scale: float = 0.35,
        workers: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        v2 = torchvision().transforms.v2
        held_out = validation_folder(directory)
        if held_out is None:
            raise DataError(f"{directory}: expected a folder val beside train, got none")
        self.resize: int | None = round(resolution / CROP_SHARE)
        middle = [
            v2.Resize(self.resize, antialias=True),
            v2.CenterCrop(resolution),
            v2.PILToTensor(),
        ]
        crop = [v2.RandomResizedCrop(resolution, (crop_scale, 1.0)), v2.PILToTensor()]
        self._validation = Images(held_out, v2.Compose(middle))
        self._training = Images(
            directory / TRAINING_FOLDER, v2.Compose(crop if crop_scale < 1 else middle)
        )
        if self._training.classes != self._validation.classes:
            differ = set(self._training.classes) ^ set(self._validation.classes)
            raise DataError(f"{directory}: only in one of the halves: {', '.join(sorted(differ))}")
        self.classes = tuple(self._training.classes)
        self.resolution = resolution
        self._workers, self._device = workers, device

    @property
    def training_count(self) -> int:
        """Images to train on."""
        return len(self._training)

    @property
    def validation_count(self) -> int:
        """Images to validate with."""
        return len(self._validation)

    def training(self, sampler: Sampler, augmentation: Augmentation) -> Iterator[Batch]:
        """Yield the sampler's batches, augmented."""
        plan = list(sampler.batches(len(self._training)))
        items = [
            [(index, seed_of(sampler.seed, sampler.epoch, index)) for index in chosen.tolist()]
            for _, chosen in plan
        ]
        batches = self._load(self._training, items)
        for (number, _), (images, labels) in zip(plan, batches, strict=True):
            moved = images.to(self._device, non_blocking=True)
            yield augmentation.apply(moved, sampler.chance(number)), labels

    def validation(
        self, batch_size: int, pixels: str, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Yield every world-th image from the rank-th on, in order."""
        mine = range(rank, len(self._validation), world)
        items = [
            [(index, 0) for index in mine[start : start + batch_size]]
            for start in range(0, len(mine), batch_size)
        ]
        for images, labels in self._load(self._validation, items):
            yield normalize(images.to(self._device, non_blocking=True), pixels), labels

    def _load(self, images: Images, items: list[list[tuple[int, int]]]) -> Iterator[Batch]:
        sampler: Any = items  # DataLoader's stubs know only indices that are integers
        return iter(
            DataLoader(
                images,
                batch_sampler=sampler,
                num_workers=self._workers,
                pin_memory=torch.device(self._device).type == "cuda",
            )
        )
