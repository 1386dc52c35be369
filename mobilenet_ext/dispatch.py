"""Which way a call goes: kernels or stock PyTorch, with or without autograd, in which dtype."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from ._library import cuda_status, has_kernels
from .batch_norm import BatchNorm


def takes_kernels(input: Tensor, weight: Tensor) -> bool:
    """Tell whether the kernels take a depthwise convolution."""
    return weight.shape[0] == input.shape[1] and device_has_kernels(input.device)


def is_autocast_enabled(device: torch.device) -> bool:
    """Tell whether autocast is on for a device; some (meta) know no autocast."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def autocast(x: Tensor) -> Tensor:
    """Cast to the autocast dtype where autocast would; float64 stays, as in torch."""
    if is_autocast_enabled(x.device) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves the dtypes of products as they are."""
    return (
        torch.autocast(device.type, enabled=False) if is_autocast_enabled(device) else nullcontext()
    )


def needs_grad(*tensors: Tensor | None) -> bool:
    """Tell whether autograd would record an op on these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def device_has_kernels(device: torch.device) -> bool:
    """Tell whether the ops run on a device; on meta the fake kernels do."""
    if device.type == "meta" or has_kernels(device):
        return True
    if not torch.compiler.is_compiling():
        _warn_about_device(device.type)
    return False


def has_device(name: str) -> bool:
    """Tell whether torch has a device of this name here; no GPU is touched."""
    try:
        device = torch.device(name)
        count: int = torch.get_device_module(device).device_count()
    except RuntimeError:  # no name of a device, or of one without a module
        return False
    return (device.index or 0) < count


@cache
def _warn_about_device(kind: str) -> None:
    """Say once per device that stock PyTorch does the work."""
    why = f" ({cuda_status()})" if kind == "cuda" else ""
    warnings.warn(
        f"mobilenet_ext has no kernels for {kind}{why}: using stock PyTorch ops there",
        stacklevel=5,
    )


def refuse_group(op: str, *norms: BatchNorm | None) -> None:
    """Stock ops do not share statistics over ranks; dropping the group would be silent."""
    for bn in norms:
        if bn is not None and bn.training and bn.process_group is not None:
            raise RuntimeError(f"{op}: process_group must be None where kernels are missing")
