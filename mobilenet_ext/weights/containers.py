"""Opens files of named tensors, safetensors and torch's, without reading the tensors.

A format is told by a file's first bytes, never by its name. torch files are taken in the zip
format of torch 1.6 and later only, uncompressed, unpickled with weights_only=True, and mapped
into memory, so that what a hostile one declares is compared before anything is allocated.
"""

from __future__ import annotations

import json
import pathlib
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checkpoint import StoredTensor
from .errors import WeightsError

SAFETENSORS, TORCH, KERAS = "safetensors", "torch", "keras"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
ZIP_SIGNATURE = b"PK\x03\x04"
NESTED = ("state_dict", "model_state_dict", "model", "state_dict_ema", "ema")
NUMBER_TYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}


@dataclass
class Container:
    """The named tensors of a file and the texts beside them."""

    path: pathlib.Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def sniff(path: pathlib.Path) -> str:
    """Tell a file's format by its content.

    Raises:
        WeightsError: it is none that is known.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    if head.startswith(HDF5_SIGNATURE):
        return KERAS
    if head.startswith(ZIP_SIGNATURE):
        return TORCH
    if head[8:9] == b"{":
        return SAFETENSORS
    if head.startswith((b"\x80", b"ustar")):
        raise WeightsError(
            f"{path}: expected torch's zip format, found a bare pickle, which may run code; save "
            "it again with torch.save of torch 1.6 or newer, better as safetensors"
        )
    raise WeightsError(
        f"{path}: expected safetensors, HDF5 (.h5) or torch's zip format (.pt, .pth, .bin), found "
        f"{'an empty file' if not head else f'a file that begins with {head[:8]!r}'}"
    )


@contextmanager
def open_safetensors(path: pathlib.Path) -> Iterator[Container]:
    """Yield the tensors of a safetensors file; the library checks that they fill the file.

    Raises:
        WeightsError: the file is damaged.
    """
    safetensors = require_safetensors()
    try:
        opened = safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged safetensors file: {error}") from error
    with opened as file:

        def stored(name: str) -> StoredTensor:
            declared = file.get_slice(name)
            dtype = NUMBER_TYPES.get(declared.get_dtype(), declared.get_dtype())
            return StoredTensor(tuple(declared.get_shape()), dtype, lambda: _get(path, file, name))

        names = list(file.keys())
        yield Container(path, {name: stored(name) for name in names}, file.metadata() or {})


def _get(path: pathlib.Path, file: Any, name: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except Exception as error:  # the library's own type of error
        raise WeightsError(f"{path}: {name} cannot be read: {error}") from error
    return tensor


def require_safetensors() -> Any:
    """Return the library with its part for torch loaded.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("weights are kept as safetensors: pip install safetensors") from error
    return safetensors


@contextmanager
def open_torch(path: pathlib.Path) -> Iterator[Container]:
    """Yield the tensors of a file that torch.save wrote.

    Raises:
        WeightsError: the file is damaged, compressed, or holds more than tensors.
    """
    _check_zip(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds objects other than tensors, which are not loaded since that can run "
            f"code: {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # damage shows as any of torch's and pickle's errors
        raise WeightsError(f"{path}: damaged torch file: {error}") from error
    tensors = {
        name: StoredTensor(tuple(value.shape), value.dtype, value.detach)
        for name, value in _state_dict(path, content).items()
    }
    yield Container(path, tensors, {})


def _check_zip(path: pathlib.Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [info.filename for info in archive.infolist() if info.compress_type]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged torch file: {error}") from error
    if compressed:
        raise WeightsError(f"{path}: expected uncompressed records, found {compressed[0]} packed")


def _state_dict(path: pathlib.Path, content: object) -> dict[str, Tensor]:
    """Find the tensors: at the top, or under a name that training scripts use."""
    if isinstance(content, dict):
        for key in NESTED:
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    if not isinstance(content, dict) or not content:
        found = type(content).__name__ if not isinstance(content, dict) else "nothing"
        raise WeightsError(f"{path}: expected a dict of tensors, found {found}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise WeightsError(f"{path}: {name}: expected a tensor, found {kind}")
        if value.layout != torch.strided or value.device.type != "cpu":
            found = f"{value.layout} on {value.device}"
            raise WeightsError(f"{path}: {name}: expected a dense tensor, found {found}")
    return {name.removeprefix("module."): value for name, value in content.items()}


def parse_json(where: str, text: str) -> Any:
    """Parse JSON from a file.

    Raises:
        WeightsError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where}: expected JSON, found {text[:40]!r}: {error}") from error
