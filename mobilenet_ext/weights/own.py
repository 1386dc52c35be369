"""This package's own format: safetensors with everything needed to build the network.

The metadata holds, as JSON, `architecture` (all arguments of the constructor), `class_names`,
`preprocessing` and `metadata` (anything else). Only the first is always there.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..checks import require
from ..model import MobileNet
from ..preprocessing import Preprocessing
from .architecture import infer_architecture
from .checkpoint import Checkpoint, declare
from .containers import Container, parse_json, require_safetensors
from .errors import WeightsError, listed


def save_pretrained(
    model: MobileNet,
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Write a network as one safetensors file that `load_pretrained` needs nothing else for.

    The file appears whole or not at all: it is written beside its place and then renamed.

    Args:
        model: a MobileNet or FusedMobileNet, on any device.
        path: of the file.
        class_names: one for each class; None: `model.class_names`.
        preprocessing: of the training's images; None: `model.preprocessing`.
        metadata: anything else that JSON can hold (recipe, accuracy, ...).

    Returns:
        The path.

    Raises:
        ValueError: the model's tensors are not those of its architecture (a replaced layer), or
            there are not as many names as classes.
        ImportError: safetensors is not installed.
    """
    save_file = require_safetensors().torch.save_file
    architecture = dict(model.config)
    state = dense_state(model)
    names = model.class_names if class_names is None else tuple(class_names)
    preprocessing = preprocessing or model.preprocessing
    if names is not None:
        count = architecture["num_classes"]
        require(len(names) == count, "save_pretrained: class_names", f"{count} names", len(names))
    texts = {"format": "pt", "architecture": json.dumps(architecture)}
    if names is not None:
        texts["class_names"] = json.dumps(names, ensure_ascii=False)
    if preprocessing is not None:
        texts["preprocessing"] = json.dumps(preprocessing.to_dict())
    if metadata is not None:
        texts["metadata"] = json.dumps(dict(metadata), ensure_ascii=False)
    path = pathlib.Path(path)
    with draft(path) as unfinished:
        save_file(state, unfinished, metadata=texts)
    return path


def dense_state(model: MobileNet) -> dict[str, Tensor]:
    """Copy the state dict to the CPU.

    Raises:
        ValueError: the tensors are not those of the model's architecture.
    """
    expected = declare("save_pretrained", model.config).state_dict()
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    different = sorted(
        name
        for name in expected.keys() | state.keys()
        if name not in expected or name not in state or state[name].shape != expected[name].shape
    )
    require(not different, "save_pretrained: model", "as built, in all layers", listed(different))
    # Copies, as safetensors refuses tensors that share memory.
    return {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }


@contextmanager
def draft(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a path to write to; it becomes `path` in one step once the block has succeeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode  # as the user wants it; safetensors makes files private
        yield unfinished
        unfinished.chmod(mode)
        with unfinished.open("r+b") as file:
            os.fsync(file.fileno())  # or the name could reach the disk before what it names
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def is_own(container: Container) -> bool:
    """Tell whether a container has this package's names of tensors."""
    return "stem.conv.weight" in container.tensors


def read_own(container: Container) -> Checkpoint:
    """Read this package's format; without its metadata, a bare state dict, by the shapes.

    Raises:
        WeightsError: the metadata is not what `save_pretrained` writes.
    """
    source = f"{container.path} (mobilenet_ext)"
    texts = container.metadata
    parsed = {
        key: parse_json(f"{source}: {key}", texts[key])
        for key in ("architecture", "class_names", "preprocessing", "metadata")
        if key in texts
    }
    architecture = parsed.get("architecture")
    if architecture is None:
        architecture = infer_architecture(source, container.tensors)
    for key, value in (("architecture", architecture), ("metadata", parsed.get("metadata", {}))):
        if not isinstance(value, dict):
            raise WeightsError(f"{source}: {key}: expected an object, found {value!r:.60}")
    return Checkpoint(
        source,
        dict(container.tensors),
        architecture,
        read_class_names(source, parsed.get("class_names")),
        _read_preprocessing(source, parsed.get("preprocessing")),
        parsed.get("metadata", {}),
    )


def read_class_names(source: str, names: object) -> tuple[str, ...] | None:
    """Check names that come from a file.

    Raises:
        WeightsError: they are not a list of texts.
    """
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{source}: class_names: expected a list of texts, found {names!r:.60}")
    return tuple(names)


def _read_preprocessing(source: str, fields: object) -> Preprocessing | None:
    if fields is None:
        return None
    try:
        if not isinstance(fields, dict):
            raise TypeError(f"expected an object, found {fields!r:.60}")
        return Preprocessing.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{source}: preprocessing: {error}") from error
