"""The frozen copy that FusedMobileNet infers with, and the check that it is still up to date.

The check runs on every forward, so it is a look in C++ into the tensors' dicts, which were
collected once. A tensor has changed when another object took its place, when it moved or was
written in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

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
        # Kept, so that no other object gets the address of one that was seen.
        self._tensors: list[Tensor | None] = []
        self._stamp: int | None = None
        self._frozen: FrozenMobileNet | None = None

    def get(self, model: MobileNet) -> FrozenMobileNet | None:
        """Return a frozen copy equal to the model as it is, or None where there can be none."""
        if self.structure.has_hooks() or self.structure.is_training():
            return None
        stamp = _C.stamp_tensors(self._tensor_dicts)
        if stamp != self._stamp:
            self._stamp = stamp
            self._tensors = [x for tensors in self._tensor_dicts for x in tensors.values()]
            self._frozen = None if stamp is None else _freeze(model)
        return self._frozen


def _freeze(model: MobileNet) -> FrozenMobileNet | None:
    """Freeze, unless a layer has been replaced by something that cannot be folded."""
    try:
        return FrozenMobileNet(model)
    except ValueError:
        return None
