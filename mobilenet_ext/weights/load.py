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
from .cache import download
from .catalog import find_published
from .checkpoint import Checkpoint, declare
from .containers import (
    KERAS,
    SAFETENSORS,
    TORCH,
    Container,
    open_safetensors,
    open_torch,
    parse_json,
    sniff,
)
from .embedded import EMBEDDED, embedded_path
from .errors import WeightsError, listed
from .hdf5 import open_keras
from .huggingface import MODEL_TYPE, is_huggingface, read_huggingface
from .keras import read_keras
from .own import is_own, read_own
from .timm import is_timm, read_timm

WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".h5", ".pt", ".pth")
MAX_JSON_BYTES = 2**24
ARGUMENTS = tuple(inspect.signature(FusedMobileNet).parameters)


def load_pretrained(
    path: str | os.PathLike[str],
    *,
    drop_background: bool = False,
    offline: bool = False,
    **overrides: Any,
) -> FusedMobileNet:
    """Load a network with its weights, class names and preprocessing.

    The format is told by the content: this package's own (`save_pretrained`), Keras's .h5, Hugging
    Face's and timm's, as safetensors or as torch saves them. Nothing in a file is executed, and
    nothing is read before its declared shape has been compared with the network's.

    Args:
        path: a file, or a folder with `model.safetensors` or `pytorch_model.bin` and `config.json`;
            or the name of published weights, such as "keras/mobilenet_1_0_224" (known_weights()
            lists them), which are downloaded into a cache once; or "cifar10", which comes with
            this package. A path that exists goes before a name; before "cifar10" only one with
            weights.
        drop_background: turn 1,001 classes into 1,000, without class 0 (TF-slim, Hugging Face).
        offline: take published weights from the cache only.
        **overrides: arguments of FusedMobileNet that replace the file's. `num_classes` other than
            the file's gives a new classifier, with a warning; 0, or `features_only`, gives none.
            A file without a classifier (Keras's `no_top`) gives a network without one.

    Returns:
        The network in training mode, on the CPU, in float32. `class_names` and `preprocessing`
        are set where they are known; `transforms()` gives the preprocessing.

    Raises:
        WeightsError: the file is damaged, or does not fit; names the tensors and shapes.
        ValueError: an override is no argument of FusedMobileNet, or out of range.
        ImportError: safetensors or h5py is needed and not installed.
    """
    unknown = sorted(overrides.keys() - set(ARGUMENTS))
    require(not unknown, "load_pretrained: overrides", f"among {ARGUMENTS}", listed(unknown))
    with open_checkpoint(locate(path, offline=offline)) as checkpoint:
        if drop_background:
            checkpoint.drop_background()
        return build(checkpoint, overrides)


def locate(path: str | os.PathLike[str], *, offline: bool) -> pathlib.Path:
    """Return the place of weights that are given by path or by name; what exists is a path."""
    place = pathlib.Path(path)
    if str(path) == EMBEDDED and not _has_weights(place):  # a folder of images, perhaps
        return embedded_path()
    if place.exists() or find_published(str(path)) is None:
        return place
    return download(str(path), offline=offline)


@contextmanager
def open_checkpoint(path: pathlib.Path) -> Iterator[Checkpoint]:
    """Yield what is in a file or folder; its tensors can be read until the block ends.

    Raises:
        WeightsError: the file is damaged or of no known format.
    """
    if path.is_dir():
        path = find_weights(path)
    kind = sniff(path)
    if kind == KERAS:
        with open_keras(path) as layers:
            yield read_keras(str(path), layers)
        return
    openers = {SAFETENSORS: open_safetensors, TORCH: open_torch}
    with openers[kind](path) as container:
        yield _read(container)


def _has_weights(place: pathlib.Path) -> bool:
    try:
        return place.is_file() or (place.is_dir() and find_weights(place).is_file())
    except WeightsError:
        return False


def find_weights(folder: pathlib.Path) -> pathlib.Path:
    """Return the file in a folder that has the weights, as Hugging Face and timm name it.

    Raises:
        WeightsError: there is none, or more than one of other names.
    """
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    found = [path for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS_SUFFIXES]
    if len(found) != 1:
        names = listed([path.name for path in found]) or "none"
        raise WeightsError(
            f"{folder}: expected {' or '.join(WEIGHTS_NAMES)}, or else one file of weights, "
            f"found {names}"
        )
    return found[0]


def _read(container: Container) -> Checkpoint:
    if is_own(container):
        return read_own(container)
    folder = container.path.parent
    config = _read_json(folder / "config.json")
    if is_huggingface(container):
        theirs = config.get("model_type") == MODEL_TYPE
        processor = _read_json(folder / "preprocessor_config.json") if theirs else {}
        return read_huggingface(container, config if theirs else {}, processor)
    if is_timm(container):
        theirs = str(config.get("architecture", "")).startswith("mobilenetv1")
        return read_timm(container, config if theirs else {})
    names = listed(sorted(container.tensors)) or "none"
    raise WeightsError(f"{container.path}: expected the tensors of a MobileNetV1, found {names}")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read an object beside the weights; none when it is not there."""
    if not path.is_file():
        return {}
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise WeightsError(f"{path}: expected up to {MAX_JSON_BYTES:,} bytes, found {size:,}")
    try:
        content = parse_json(str(path), path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path}: expected JSON: {error}") from error
    return content if isinstance(content, dict) else {}


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
    classes = 0 if stored["features_only"] else stored["num_classes"]
    if not headless and wanted["num_classes"] == classes:
        return False
    checkpoint.drop_classifier()
    if headless:
        return False
    warnings.warn(
        f"{checkpoint.source}: the classifier is new and has to be trained: "
        f"{wanted['num_classes']} classes instead of {classes or 'none'}",
        stacklevel=4,
    )
    return True
