"""CIFAR-10 from its authors: fetched, resumed, checked and unpacked."""

import pathlib
import tarfile

from ..weights.cache import cache_folder
from ..weights.errors import WeightsError
from ..weights.fetch import NotThere, fetch
from .cifar10 import TRAINING_FILES, VALIDATION_FILES
from .errors import DataError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FOLDER = "cifar-10-batches-bin"
FILES = (*TRAINING_FILES, *VALIDATION_FILES)


def default_folder() -> pathlib.Path:
    """Return where CIFAR-10 goes when nobody says where: the cache for downloads."""
    return cache_folder() / "cifar10"


def download_cifar10(directory: pathlib.Path, *, progress: bool | None = None) -> pathlib.Path:
    """Make sure that CIFAR-10's binary version is below `directory`.

    Args:
        directory: Made if it is not there; files that are there already are kept.
        progress: Show a bar; None: on a terminal.

    Returns:
        The folder of the `.bin` files.

    Raises:
        DataError: It cannot be had, or is not what it should be. What has come is kept, and the
            next call goes on from there.
    """
    folder = directory / FOLDER
    if all((folder / name).is_file() for name in FILES):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    archive = directory / URL.rpartition("/")[2]
    try:
        fetch(URL, archive, sha256=SHA256, progress=progress)
    except (NotThere, WeightsError) as error:
        raise DataError(f"CIFAR-10 cannot be downloaded: {error}") from error
    unpack(archive, folder)
    archive.unlink()
    return folder


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Take the data files, and nothing else, out of the archive.

    Raises:
        DataError: It is damaged, or one is missing.
    """
    try:
        with tarfile.open(archive) as tar:
            for name in FILES:
                file = tar.extractfile(f"{FOLDER}/{name}")
                assert file is not None, "it is no folder"
                unfinished = folder / f"{name}.part"
                unfinished.write_bytes(file.read())
                unfinished.replace(folder / name)
    except (KeyError, EOFError, tarfile.TarError, OSError) as error:
        raise DataError(f"{archive}: cannot be unpacked: {error}") from error
