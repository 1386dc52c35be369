"""load_pretrained: from a file of any known format to a FusedMobileNet.

Open, find the architecture, compare every declared tensor with the network's, and only then read.
"""

from __future__ import annotations

import inspect
import os
import pathlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..checks import require
from ..fused_model import FusedMobileNet
from .checkpoint import Checkpoint, declare
from .containers import SAFETENSORS, TORCH, open_safetensors, open_torch, sniff
from .errors import WeightsError, listed
from .own import is_own, read_own

ARGUMENTS = tuple(inspect.signature(FusedMobileNet).parameters)


def load_pretrained(path: str | os.PathLike[str], **overrides: Any) -> FusedMobileNet:
    """Load a network with its weights, class names and preprocessing.

    Args:
        path: a file that `save_pretrained` wrote. The format is told by the content.
        **overrides: arguments of FusedMobileNet that replace the file's. `num_classes` other than
            the file's gives a new classifier, with a warning; 0, or `features_only`, gives none.

    Returns:
        The network in training mode, on the CPU, in float32. `class_names` and `preprocessing`
        are set where they are known; `transforms()` gives the preprocessing.

    Raises:
        WeightsError: the file is damaged, or does not fit; names the tensors and shapes.
        ValueError: an override is no argument of FusedMobileNet, or out of range.
    """
    unknown = sorted(overrides.keys() - set(ARGUMENTS))
    require(not unknown, "load_pretrained: overrides", f"among {ARGUMENTS}", listed(unknown))
    with open_checkpoint(pathlib.Path(path)) as checkpoint:
        return build(checkpoint, overrides)


@contextmanager
def open_checkpoint(path: pathlib.Path) -> Iterator[Checkpoint]:
    """Yield what is in a file; its tensors can be read until the block ends.

    Raises:
        WeightsError: the file is damaged or of no known format.
    """
    openers = {SAFETENSORS: open_safetensors, TORCH: open_torch}
    with openers[sniff(path)](path) as container:
        if not is_own(container):
            names = listed(sorted(container.tensors))
            raise WeightsError(f"{path}: expected the tensors of a MobileNetV1, found {names}")
        yield read_own(container)


def build(checkpoint: Checkpoint, overrides: dict[str, Any]) -> FusedMobileNet:
    """Make the network and fill it.

    Raises:
        WeightsError: the tensors do not fit.
    """
    stored = declare(checkpoint.source, checkpoint.architecture).config
    wanted = declare("load_pretrained", {**stored, **overrides}).config
    new_classifier = _replace_classifier(checkpoint, stored, wanted)
    names, classes = checkpoint.class_names, wanted["num_classes"]
    if names is not None and len(names) != classes:
        raise WeightsError(
            f"{checkpoint.source}: class_names: expected {classes} names, found {len(names)}"
        )
    declared = declare(checkpoint.source, wanted)
    checkpoint.check(
        {
            name: tensor
            for name, tensor in declared.state_dict().items()
            if not (new_classifier and name.startswith("classifier."))
        }
    )
    model = FusedMobileNet(**wanted)
    state = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
    with torch.no_grad():
        model.load_state_dict(state, strict=False)
    model.class_names = names
    model.preprocessing = checkpoint.preprocessing
    return model


def _replace_classifier(
    checkpoint: Checkpoint, stored: dict[str, Any], wanted: dict[str, Any]
) -> bool:
    """Drop the file's classifier where another one, or none, is wanted; tell whether it is new."""
    headless = wanted["features_only"] or not wanted["num_classes"]
    if not headless and wanted["num_classes"] == stored["num_classes"]:
        return stored["features_only"]
    checkpoint.drop_classifier()
    if headless:
        return False
    warnings.warn(
        f"{checkpoint.source}: the classifier is new and has to be trained: "
        f"{wanted['num_classes']} classes instead of {stored['num_classes'] or 'none'}",
        stacklevel=4,
    )
    return True
