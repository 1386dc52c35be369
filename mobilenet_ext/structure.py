"""What a model is made of, collected once, so that every forward can tell quickly if it changed."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn

from .layers import ConvBNReLU


class Structure:
    """The modules below a model, and their hooks."""

    def __init__(self, model: nn.Module) -> None:
        """Collect them as they are now."""
        self.chain: list[ConvBNReLU] | None = None
        """The layers in order, for a model that may run as a chain."""
        holders = [module._modules for module in model.modules() if module._modules]
        self._holders: list[dict[str, nn.Module | None]] = holders
        self._present = self._collect()
        self._types = list(map(type, self._present))
        self.modules = [module for module in self._present if module is not None]
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
        present = self._collect()
        return present == self._present and list(map(type, present)) == self._types

    def has_hooks(self) -> bool:
        """Tell whether calling any of the modules runs more than its forward."""
        return any(self._hooks)

    def _collect(self) -> list[nn.Module | None]:
        return list(chain.from_iterable(held.values() for held in self._holders))
