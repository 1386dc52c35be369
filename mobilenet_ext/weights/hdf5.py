"""Opens Keras's HDF5 files: the layers that have weights, in order, none of them read yet.

HDF5 can point outside the file, compute data, and unpack much from little; so whatever is not a
plain array inside the file is refused: soft and external links, virtual and external storage,
chunks and filters (which are plugins, thus code). Keras writes none of these.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .checkpoint import StoredTensor
from .errors import WeightsError

MAX_NAMES = 1024  # of layers or weights in one attribute
MAX_NAME_BYTES = 2**28  # that variable-length names of one attribute could take at worst
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # of the tree that Keras 3 writes
FLOAT_BYTES = {2: torch.float16, 4: torch.float32, 8: torch.float64}


@dataclass(frozen=True)
class KerasLayer:
    """A layer's weights in Keras's order, by their full names."""

    name: str
    weights: dict[str, StoredTensor]


@contextmanager
def open_keras(path: pathlib.Path) -> Iterator[list[KerasLayer]]:
    """Yield the layers with weights, in the order of the network.

    Raises:
        WeightsError: the file is damaged, is not Keras's, or has more than plain arrays in it.
        ImportError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "Keras's .h5 files are read with h5py: pip install 'mobilenet_ext[weights]'"
        ) from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise WeightsError(f"{path}: damaged HDF5 file: {error}") from error
    with file:
        reader = _Reader(path, h5py)
        try:
            layers = reader.layers(file)
        except (OSError, RuntimeError, KeyError, TypeError, ValueError, UnicodeError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{path}: damaged HDF5 file: {error}") from error
        yield layers


class _Reader:
    """Walks one file; `h5py` is the module."""

    def __init__(self, path: pathlib.Path, h5py: Any) -> None:
        self.path = path
        self.h5py = h5py

    def layers(self, file: Any) -> list[KerasLayer]:
        """Tell the layouts apart: legacy, a whole saved model, the tree of Keras 3."""
        root = file
        if "model_weights" in file:
            root = self.child(file, "model_weights")
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
            return self._legacy(root)
        for name in CONTAINERS:
            if name in root:
                return self._tree(self.child(root, name))
        found = ", ".join(list(root)[:8]) or "nothing"
        raise WeightsError(
            f"{self.path}: expected Keras weights (an attribute layer_names, or a group layers), "
            f"found {found}"
        )

    def _legacy(self, root: Any) -> list[KerasLayer]:
        layers = []
        for name in self.names(root, "layer_names"):
            group = self.child(root, name)
            weights = {
                weight: self.stored(self.child(group, weight), weight)
                for weight in self.names(group, "weight_names")
            }
            if weights:
                layers.append(KerasLayer(name, weights))
        return layers

    def _tree(self, layers: Any) -> list[KerasLayer]:
        """Groups `conv2d`, `conv2d_1`, ... count each class of layer in the network's order."""
        found = []
        for name in layers:
            variables = self.child(layers, name)
            variables = self.child(variables, "vars") if "vars" in variables else {}
            count = len(variables)
            if count:
                names = [f"{name}/vars/{index}" for index in range(count)]
                weights = {full: self.stored(self.child(layers, full), full) for full in names}
                found.append((_place(name), KerasLayer(name, weights)))
        return [layer for _, layer in sorted(found, key=lambda item: item[0])]

    def child(self, group: Any, name: str) -> Any:
        """Follow a path through hard links only."""
        node = group
        for part in filter(None, name.split("/")):
            is_group = isinstance(node, self.h5py.Group)
            link = node.get(part, getlink=True) if is_group else None
            if link is None:
                raise WeightsError(f"{self.path}: missing: {name} in {group.name}")
            if not isinstance(link, self.h5py.HardLink):
                raise WeightsError(
                    f"{self.path}: {name}: expected an array in the file, "
                    f"found a {type(link).__name__}"
                )
            node = node[part]
        return node

    def names(self, node: Any, attribute: str) -> list[str]:
        """Read a list of names that may be split over `attribute`0, `attribute`1, ..."""
        if attribute in node.attrs:
            return self._attribute(node, attribute)
        names: list[str] = []
        part = 0
        while f"{attribute}{part}" in node.attrs:
            names += self._attribute(node, f"{attribute}{part}")
            part += 1
        return names

    def _attribute(self, node: Any, attribute: str) -> list[str]:
        declared = node.attrs.get_id(attribute)
        where = f"{self.path}: {node.name}: {attribute}"
        kind = self.h5py.check_string_dtype(declared.dtype)
        count = 1
        for size in declared.shape:
            count *= size
        if count == 0:
            return []
        if kind is None or len(declared.shape) != 1 or count > MAX_NAMES:
            raise WeightsError(
                f"{where}: expected up to {MAX_NAMES} names, found shape "
                f"{list(declared.shape)} of {declared.dtype}"
            )
        # Names of variable length may all point to one long text, so assume that they do.
        longest = kind.length if kind.length is not None else self._bytes_besides_data(node.file)
        if count * longest > MAX_NAME_BYTES:
            raise WeightsError(f"{where}: expected names, found up to {count * longest:,} bytes")
        return [
            name.decode("utf-8") if isinstance(name, bytes) else str(name)
            for name in node.attrs[attribute]
        ]

    def _bytes_besides_data(self, file: Any) -> int:
        stored = 0

        def add(name: str, node: Any) -> None:
            nonlocal stored
            if isinstance(node, self.h5py.Dataset):
                stored += node.id.get_storage_size()

        file.visititems(add)
        return max(0, int(file.id.get_filesize()) - stored)

    def stored(self, dataset: Any, name: str) -> StoredTensor:
        """Check that a dataset is a plain array, whose bytes are there, and declare it."""
        where = f"{self.path}: {name}"
        if not isinstance(dataset, self.h5py.Dataset) or dataset.shape is None:
            raise WeightsError(f"{where}: expected an array, found {type(dataset).__name__}")
        layout = dataset.id.get_create_plist()
        h5d = self.h5py.h5d
        plain = layout.get_layout() in (h5d.CONTIGUOUS, h5d.COMPACT)
        if not plain or layout.get_nfilters() or layout.get_external_count():
            raise WeightsError(
                f"{where}: expected a plain array in the file, found chunked, compressed, external "
                "or virtual storage"
            )
        kind = dataset.dtype
        dtype: torch.dtype | str = str(kind)
        if kind.kind == "f" and kind.itemsize in FLOAT_BYTES:
            dtype = FLOAT_BYTES[kind.itemsize]
        shape = tuple(map(int, dataset.shape))
        size = kind.itemsize
        for extent in shape:
            size *= extent
        held = int(dataset.id.get_storage_size())
        if held != size:
            raise WeightsError(f"{where}: shape {list(shape)} takes {size:,} bytes, found {held:,}")

        def read() -> torch.Tensor:
            try:
                values = dataset[()]
            except (OSError, RuntimeError) as error:
                raise WeightsError(f"{where}: cannot be read: {error}") from error
            return torch.from_numpy(values.astype(kind.newbyteorder("=")))

        return StoredTensor(shape, dtype, read)


def _place(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(?:_(\d+))?", name)
    assert match is not None
    return match[1], int(match[2] or 0)
