"""What a model is made of, collected once, so that every forward can tell quickly if it changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from . import _C
from .nn import has_own_forward
from .training_chain import TrainingChain


class Structure:
    """The modules below a model, their hooks, and the modes of those that have two."""

    def __init__(self, model: nn.Module) -> None:
        """Collect them as they are now."""
        self.chain: TrainingChain | None = None
        """The layers in order, for a model that may run as a chain."""
        holders = [module._modules for module in model.modules() if module._modules]
        self.holders: list[dict[str, nn.Module | None]] = holders
        self._present = self._collect()
        self._stamp: int | None = None
        self.modules = [module for module, _ in self._present if module is not None]
        self.modes = [m.__dict__ for m in self.modules if isinstance(m, (_BatchNorm, _DropoutNd))]
        self.hooks: list[dict[Any, Any]] = [
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
        if torch.compiler.is_compiling():  # which follows Python only
            return self._collect() == self._present
        stamp = _C.stamp_objects(self.holders)
        if self._stamp is None and self._collect() == self._present:
            self._stamp = stamp
        return stamp == self._stamp

    def has_hooks(self) -> bool:
        """Tell whether calling any of the modules runs hooks."""
        return any(self.hooks) if torch.compiler.is_compiling() else _C.any_items(self.hooks)

    def has_own_forward(self) -> bool:
        """Tell whether a forward was assigned to any of the modules; reads them one by one."""
        return any(map(has_own_forward, self.modules))

    def is_training(self) -> bool:
        """Tell whether a BatchNorm or a dropout is in training mode."""
        return _C.any_training(self.modes)

    def _collect(self) -> list[tuple[nn.Module | None, type]]:
        return [(module, type(module)) for held in self.holders for module in held.values()]
