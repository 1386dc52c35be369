"""The frozen copy that FusedMobileNet infers with, and the check that it is still up to date.

The check runs on every forward, so it is a look in C++ into the tensors' dicts, which were
collected once. A tensor has changed when another object took its place, when it moved or was
written in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _C
from .inference import FrozenMobileNet
from .structure import Structure

if TYPE_CHECKING:
    from .model import MobileNet


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
        self._known: tuple[_C.TensorWatch, FrozenMobileNet | None] | None = None

    def get(self, model: MobileNet) -> FrozenMobileNet | None:
        """Return a frozen copy equal to the model as it is, or None where there can be none."""
        if self.structure.has_hooks() or self.structure.is_training():
            return None
        known = self._known
        if known is None or not known[0].is_current():
            watch = _C.TensorWatch(self._tensor_dicts)
            known = self._known = (watch, _freeze(model) if watch.is_reliable() else None)
        return known[1]


def _freeze(model: MobileNet) -> FrozenMobileNet | None:
    """Freeze, unless a layer has been replaced by something that cannot be folded."""
    try:
        return FrozenMobileNet(model)
    except ValueError:
        return None
