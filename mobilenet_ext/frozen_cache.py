"""The frozen copy that FusedMobileNet infers with, and the check that it is still up to date.

The check runs on every forward, so it maps built-in functions over lists that were collected once:
some 50 us for 28 layers. A tensor has changed when another object took its place, when it moved
(`data_ptr`) or was written in place (`_version`, which only grows: the sum tells).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .inference import FrozenMobileNet
from .structure import Structure

if TYPE_CHECKING:
    from .model import MobileNet


_is_training = attrgetter("training")
_version = attrgetter("_version")
_values: Callable[[dict[str, Any]], Iterable[Any]] = dict.values


class FrozenCache:
    """One FrozenMobileNet, made anew when the model it came from has changed."""

    def __init__(self, model: MobileNet, structure: Structure) -> None:
        """Collect what to watch; nothing is folded yet."""
        self.structure = structure
        self._tensor_dicts = [
            tensors
            for module in (model, *structure.modules)
            for tensors in (module._parameters, module._buffers)
            if tensors
        ]
        self._tensors: list[Tensor | None] = []
        self._present: list[Tensor] = []
        self._addresses: list[int] = []
        self._versions = -1
        self._can_watch = False
        self._frozen: FrozenMobileNet | None = None

    def get(self, model: MobileNet) -> FrozenMobileNet | None:
        """Return a frozen copy equal to the model as it is, or None where there can be none."""
        if self.structure.has_hooks() or any(map(_is_training, self.structure.modules)):
            return None
        tensors = list(chain.from_iterable(map(_values, self._tensor_dicts)))
        if len(tensors) != len(self._tensors) or not all(map(is_, tensors, self._tensors)):
            self._tensors = tensors
            self._present = [x for x in tensors if x is not None]
            self._versions, self._can_watch = -1, all(map(_has_stamp, self._present))
        if not self._can_watch:
            return None
        addresses = list(map(Tensor.data_ptr, self._present))
        versions = sum(map(_version, self._present))
        if versions != self._versions or addresses != self._addresses:
            self._versions, self._addresses = versions, addresses
            self._frozen = _freeze(model)
        return self._frozen


def _has_stamp(x: Tensor) -> bool:
    """Tell whether writes to a tensor can be noticed: inference tensors have no version."""
    return type(x) in (Tensor, nn.Parameter) and not x.is_inference()


def _freeze(model: MobileNet) -> FrozenMobileNet | None:
    """Freeze, unless a layer has been replaced by something that cannot be folded."""
    try:
        return FrozenMobileNet(model)
    except ValueError:
        return None
