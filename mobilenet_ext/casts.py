"""Weights in autocast's dtype: one pass for several of them, and one for all of their gradients.

A network has 27, most of them small. Casting each by itself takes two ops and a node of autograd's
graph, which on a GPU is more of the CPU's time than a block's kernels take of the GPU's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import dispatch


def autocast_together(weights: Sequence[Tensor]) -> list[Tensor]:
    """Cast to the autocast dtype where autocast would, as `dispatch.autocast` does each.

    Their gradients come at the same time, when those of all of them are there.
    """
    if torch.compiler.is_compiling() or not _are_alike(weights):
        return list(map(dispatch.autocast, weights))
    dtype = torch.get_autocast_dtype(weights[0].device.type)
    return list(CastTogether.apply(dtype, *weights))


def _are_alike(weights: Sequence[Tensor]) -> bool:
    """Tell whether they are float32, want gradients, and nobody overloads what is done to them."""
    device = weights[0].device
    return (
        torch.is_grad_enabled()
        and dispatch.is_autocast_enabled(device)
        and all(
            (x.requires_grad, x.dtype, x.device) == (True, torch.float32, device)
            and type(x) in {Tensor, torch.nn.Parameter}
            for x in weights
        )
    )


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    results = [torch.empty_like(x, dtype=dtype) for x in tensors]
    if results:
        torch._foreach_copy_(results, list(tensors))
    return results


class CastTogether(Function):
    """Copies of float32 tensors in another dtype."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Copy them."""
        ctx.set_materialize_grads(False)
        return tuple(_cast(tensors, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Copy gradients back, for (dtype, the tensors)."""
        if torch.is_grad_enabled():  # recorded: an in-place copy would not be
            return None, *(None if g is None else g.float() for g in gradients)
        casts = iter(_cast([g for g in gradients if g is not None], torch.float32))
        return None, *(None if g is None else next(casts) for g in gradients)
