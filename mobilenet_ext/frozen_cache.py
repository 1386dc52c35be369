"""The frozen copy that FusedMobileNet infers with, and the check that it is still up to date.

The check runs on every forward, so it is a look in C++ into the tensors' dicts, which were
collected once. A tensor has changed when another object took its place, when it moved or was
written in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from . import _C
from .inference import FrozenMobileNet
from .structure import Structure

if TYPE_CHECKING:
    from .model import MobileNet


class _Known(NamedTuple):
    """A frozen copy, None where there can be none, and what it was made of."""

    watch: _C.TensorWatch
    frozen: FrozenMobileNet | None
    tensors: list[Tensor]
    """And aliases of them, so that no other tensor, and no other data, gets the address of one."""


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
        self._known: _Known | None = None

    def get(self, model: MobileNet) -> FrozenMobileNet | None:
        """Return a frozen copy equal to the model as it is, or None where there can be none."""
        if self.structure.has_hooks() or self.structure.is_training():
            return None
        known = self._known
        if known is None or not known.watch.is_current(self._tensor_dicts):
            known = self._known = self._look(model)
        return known.frozen

    def _look(self, model: MobileNet) -> _Known:
        watch = _C.TensorWatch(self._tensor_dicts)
        if not watch.is_reliable():
            return _Known(watch, None, [])
        tensors = [x for held in self._tensor_dicts for x in held.values() if x is not None]
        return _Known(watch, _freeze(model), [*tensors, *(x.detach() for x in tensors)])


def _freeze(model: MobileNet) -> FrozenMobileNet | None:
    """Freeze, unless a layer has been replaced by something that cannot be folded."""
    try:
        return FrozenMobileNet(model)
    except ValueError:
        return None
