"""The network that comes with this package: CIFAR-10, alpha 0.5; its card is beside it."""

import pathlib

from .errors import WeightsError

EMBEDDED = "cifar10"  # the name that load_pretrained knows it by
FILE = pathlib.Path(__file__).with_name("cifar10-alpha0.5.safetensors")
CARD = FILE.with_suffix(".md")


def embedded_path() -> pathlib.Path:
    """Return the file.

    Raises:
        WeightsError: This build of the package has none.
    """
    if not FILE.is_file():
        raise WeightsError(
            f"{EMBEDDED}: this build of mobilenet_ext comes without weights ({FILE.name}); name "
            "others with --model, or train some with mobilenet-ext train"
        )
    return FILE
