"""What a model is made of, collected once, so that every forward can tell quickly if it changed."""

from __future__ import annotations

from typing import Any

from torch import nn

from . import _C
from .layers import ConvBNReLU


class Structure:
    """The modules below a model, their hooks and their modes."""

    def __init__(self, model: nn.Module) -> None:
        """Collect them as they are now."""
        self.chain: list[ConvBNReLU] | None = None
        """The layers in order, for a model that may run as a chain."""
        holders = [module._modules for module in model.modules() if module._modules]
        self._holders: list[dict[str, nn.Module | None]] = holders
        self.modules = [m for held in holders for m in held.values() if m is not None]
        self._stamp = _C.stamp_objects(holders)
        self._hooks: list[dict[Any, Any]] = [
            hooks
            for module in self.modules
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ]

    def is_current(self) -> bool:
        """Tell whether the model is still made of the same modules, of the same types."""
        return _C.stamp_objects(self._holders) == self._stamp

    def has_hooks(self) -> bool:
        """Tell whether calling any of the modules runs more than its forward."""
        return _C.any_items(self._hooks)

    def is_training(self) -> bool:
        """Tell whether any of the modules is in training mode."""
        return _C.any_training(self.modules)
