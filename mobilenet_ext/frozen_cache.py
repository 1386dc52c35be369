"""The frozen copy that FusedMobileNet infers with, and the check that it is still up to date.

The check runs on every forward, so it walks lists that were collected once. A tensor has changed
when another object took its place, when it moved (`data_ptr`) or was written in place (`_version`).
"""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .inference import FrozenMobileNet

if TYPE_CHECKING:
    from .model import MobileNet


class FrozenCache:
    """One FrozenMobileNet, made anew when the model it came from has changed."""

    def __init__(self, model: MobileNet) -> None:
        """Collect what to watch; nothing is folded yet."""
        modules = list(model.modules())
        self._holders = [module._modules for module in modules if module._modules]
        self._modules = self._present_modules()
        self._tensor_dicts = [
            tensors
            for module in modules
            for tensors in (module._parameters, module._buffers)
            if tensors
        ]
        self._hooks = [
            hooks
            for module in self._modules
            if module is not None
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ]
        self._tensors: list[Tensor] = []
        self._stamps: list[tuple[int, int]] = []
        self._can_watch = False
        self._frozen: FrozenMobileNet | None = None

    def has_same_modules(self) -> bool:
        """Tell whether the model is still made of the modules that are watched."""
        return self._present_modules() == self._modules

    def get(self, model: MobileNet) -> FrozenMobileNet | None:
        """Return a frozen copy equal to the model as it is, or None where there can be none."""
        if any(self._hooks) or any(module.training for module in self._modules if module):
            return None
        tensors = [x for held in self._tensor_dicts for x in held.values() if x is not None]
        if len(tensors) != len(self._tensors) or not all(map(is_, tensors, self._tensors)):
            self._tensors, self._stamps = tensors, []
            self._can_watch = all(map(_has_stamp, tensors))
        if not self._can_watch:
            return None
        stamps = [(x.data_ptr(), x._version) for x in tensors]
        if stamps != self._stamps:
            self._stamps, self._frozen = stamps, _freeze(model)
        return self._frozen

    def _present_modules(self) -> list[nn.Module | None]:
        """Return all modules below the model."""
        return list(chain.from_iterable(held.values() for held in self._holders))


def _has_stamp(x: Tensor) -> bool:
    """Tell whether writes to a tensor can be noticed: inference tensors have no version."""
    return type(x) in (Tensor, nn.Parameter) and not x.is_inference()


def _freeze(model: MobileNet) -> FrozenMobileNet | None:
    """Freeze, unless a layer has been replaced by something that cannot be folded."""
    try:
        return FrozenMobileNet(model)
    except ValueError:
        return None
