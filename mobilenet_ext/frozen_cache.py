"""The frozen copy that FusedMobileNet infers with, and the check that it is still up to date.

The check runs on every forward, so it is a look in C++ at modules and tensors that were collected
once, and into the dicts that hold them if Python says that one was written to. A tensor has changed
when another object took its place, when it moved or was written in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _C
from .inference import FrozenMobileNet

if TYPE_CHECKING:
    from .model import MobileNet
    from .structure import Structure


class FrozenCache:
    """A frozen copy of a model as it is now."""

    def __init__(self, model: MobileNet, structure: Structure) -> None:
        """Freeze the model, which has to be in eval mode and without hooks inside."""
        dicts = [
            held
            for module in (model, *structure.modules)
            for held in (module._parameters, module._buffers)
            if held
        ]
        self.frozen: FrozenMobileNet | None = None
        """None where there can be none."""
        # The watch keeps nothing alive. The model itself is not kept: it has this cache.
        self._watched: tuple[object, ...] = (structure, dicts)
        self._watch = _C.ModelWatch(structure.holders, structure.hooks, structure.modes, dicts)
        if not self._watch.is_reliable():
            return
        tensors = [x for held in dicts for x in held.values() if x is not None]
        # Aliases too, so that no other data gets the address of one.
        self._watched += (tensors, [x.detach() for x in tensors])
        self.frozen = _freeze(model)

    def is_current(self) -> bool:
        """Tell whether the model is what it was."""
        return self._watch.is_current()


def _freeze(model: MobileNet) -> FrozenMobileNet | None:
    """Freeze, unless a layer has been replaced by something that cannot be folded."""
    try:
        return FrozenMobileNet(model)
    except ValueError:
        return None
