"""CIFAR-10 in its binary layout.

A file is a sequence of records: one label byte, then 3,072 pixel bytes (the 32×32 red plane, then
green, then blue). `data_batch_1.bin` to `data_batch_5.bin` are for training, `test_batch.bin` for
validation.
"""

import os
import pathlib

import torch
from torch import Tensor

from .errors import DataError

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SIZE = 32  # height and width of an image
RECORD_BYTES = 1 + 3 * SIZE * SIZE
RECORDS_PER_FILE = 10_000
TRAINING_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
VALIDATION_FILES = ("test_batch.bin",)


def load_cifar10(directory: str | os.PathLike[str], *, train: bool) -> tuple[Tensor, Tensor]:
    """Load one half of CIFAR-10 into memory.

    Args:
        directory: Where the `.bin` files are, or the parent of `cifar-10-batches-bin`.
        train: The 50,000 training images, else the 10,000 for validation.

    Returns:
        Images [N, 3, 32, 32], uint8, and labels [N], int64, in the order of the files.

    Raises:
        DataError: If a file is missing, has the wrong size, or holds a label above 9.
    """
    folder = _find_folder(pathlib.Path(directory))
    names = TRAINING_FILES if train else VALIDATION_FILES
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: expected {', '.join(names)}, missing {', '.join(missing)}; unpack the "
            "binary version of CIFAR-10 (cifar-10-binary.tar.gz) there"
        )
    parts = [_read_file(folder / name) for name in names]
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)


def _find_folder(directory: pathlib.Path) -> pathlib.Path:
    if not directory.is_dir():
        raise DataError(f"{directory}: expected a directory with CIFAR-10, got nothing there")
    nested = directory / "cifar-10-batches-bin"
    return nested if nested.is_dir() else directory


def _read_file(path: pathlib.Path) -> tuple[Tensor, Tensor]:
    expected, found = RECORDS_PER_FILE * RECORD_BYTES, path.stat().st_size
    if found != expected:
        raise DataError(
            f"{path}: expected {expected:,} bytes ({RECORDS_PER_FILE:,} records of "
            f"{RECORD_BYTES:,}), got {found:,}"
        )
    content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    records = content.view(RECORDS_PER_FILE, RECORD_BYTES)
    labels = records[:, 0].long()
    wrong = (labels >= len(CLASSES)).nonzero()
    if len(wrong):
        record = int(wrong[0])
        raise DataError(
            f"{path}: record {record}: expected a label from 0 to 9, got {int(labels[record])}"
        )
    return records[:, 1:].reshape(-1, 3, SIZE, SIZE), labels
