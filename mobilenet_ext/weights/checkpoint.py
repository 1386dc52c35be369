"""What every reader yields: tensors that are declared but not yet read, and what they belong to.

Nothing is allocated for a tensor before its shape has been compared with the network's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..fused_model import FusedMobileNet
from ..model import MobileNet
from ..preprocessing import Preprocessing
from .errors import WeightsError, listed

BACKGROUND_CLASSES = 1001
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its declared shape and type, and a way to read it."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str
    read: Callable[[], Tensor]

    def map(self, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> StoredTensor:
        """Return the tensor in another layout, changed when it is read."""
        return StoredTensor(shape, self.dtype, lambda: change(self.read()))


@dataclass
class Checkpoint:
    """A file's tensors under this package's names, and the network that they fit."""

    source: str  # path and format, for messages
    tensors: dict[str, StoredTensor]
    architecture: dict[str, Any]
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # ours: the file's own, for messages

    def check(self, expected: Mapping[str, Tensor]) -> None:
        """Compare all declared tensors with those of the network.

        Raises:
            WeightsError: tensors are missing, unexpected, or of another shape or type.
        """
        faults = []
        optional = {name for name in expected if name.endswith("num_batches_tracked")}
        missing = [self._name(name) for name in expected.keys() - optional - self.tensors.keys()]
        unexpected = [self._name(name) for name in self.tensors.keys() - expected.keys()]
        if missing:
            faults.append(f"missing: {listed(sorted(missing))}")
        if unexpected:
            faults.append(f"unexpected: {listed(sorted(unexpected))}")
        shapes = []
        for name in expected:
            if name in self.tensors:
                shapes += self._mismatch(name, expected[name])
        if shapes:
            faults.append(listed(shapes))
        if faults:
            raise WeightsError(f"{self.source}: {'; '.join(faults)}")

    def _mismatch(self, name: str, expected: Tensor) -> list[str]:
        stored = self.tensors[name]
        wanted, found = list(expected.shape), list(stored.shape)
        if wanted != found:
            return [f"{self._name(name)}: expected {wanted}, found {found}"]
        allowed = FLOATS if expected.is_floating_point() else (torch.int64,)
        if stored.dtype not in allowed:
            kinds = "a floating point type" if expected.is_floating_point() else "int64"
            return [f"{self._name(name)}: expected {kinds}, found {stored.dtype}"]
        return []

    def _name(self, name: str) -> str:
        theirs = self.names.get(name)
        return name if theirs is None or theirs == name else f"{theirs} ({name})"

    def drop_background(self) -> None:
        """Leave out class 0 of ImageNet's 1,001, which stands for none of the others.

        Raises:
            WeightsError: there are not 1,001 classes.
        """
        classes = self.architecture.get("num_classes")
        if classes != BACKGROUND_CLASSES:
            raise WeightsError(
                f"{self.source}: classifier.weight: expected {BACKGROUND_CLASSES} classes to drop "
                f"the background from, found {classes}"
            )
        for name in ("classifier.weight", "classifier.bias"):
            stored = self.tensors.get(name)
            if stored is not None and stored.shape:
                shape = (stored.shape[0] - 1, *stored.shape[1:])
                self.tensors[name] = stored.map(shape, lambda value: value[1:])
        self.architecture = {**self.architecture, "num_classes": classes - 1}
        if self.class_names is not None:
            self.class_names = self.class_names[1:]

    def drop_classifier(self) -> None:
        """Forget the classifier and the names of its classes."""
        for name in [name for name in self.tensors if name.startswith("classifier.")]:
            del self.tensors[name]
        self.class_names = None


def declare(where: str, architecture: Mapping[str, Any]) -> MobileNet:
    """Build the network without memory, to know its tensors' names and shapes.

    Raises:
        WeightsError: there is no such network.
    """
    try:
        with torch.device("meta"):
            return FusedMobileNet(**architecture)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise WeightsError(f"{where}: no such network: {error}") from error
