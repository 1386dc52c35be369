"""The options that name a network, for the commands that use one."""

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..fused_model import FusedMobileNet


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model and --offline."""
    add = parser.add_argument
    add(
        "--model",
        help="file or name of weights, as load_pretrained takes them (default: cifar10, the one "
        "that comes with this package)",
    )
    add("--offline", action="store_true", help="take downloads from the cache only")


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings as a command does, without the line of code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        print(f"mobilenet-ext: warning: {warning.message}", file=sys.stderr)


def load_model(options: argparse.Namespace) -> "FusedMobileNet":
    """Return the network that the options name, in eval mode.

    Raises:
        WeightsError: It cannot be had.
    """
    from ..weights import load_pretrained
    from ..weights.embedded import embedded_path

    path = embedded_path() if options.model is None else options.model
    with plain_warnings():
        model = load_pretrained(path, offline=options.offline)
    return model.eval()


def load_classifier(options: argparse.Namespace) -> "FusedMobileNet":
    """Return the network that the options name, in eval mode.

    Raises:
        WeightsError: It cannot be had.
        ValueError: It has no classifier.
    """
    from ..checks import require

    model = load_model(options)
    classifies = bool(model.config["num_classes"]) and not model.features_only
    require(classifies, "--model", "a network with a classifier", options.model)
    return model
