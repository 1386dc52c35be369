"""What runs an op: the CPU kernels, the CUDA kernels emulated on the host, or a GPU.

All of them take CPU tensors and return CPU tensors, so that one test does for all.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cuda_on_host.library import library
from torch import Tensor

from mobilenet_ext._library import cuda_status

Op = Callable[..., Any]


def why_not_on_host() -> str | None:
    """What keeps CUDA kernels from being emulated here, if anything does."""
    return None if sys.platform == "linux" else "CUDA kernels are emulated on Linux only"


def why_no_gpu() -> str | None:
    """What keeps CUDA kernels from running on a GPU here, if anything does."""
    if not torch.cuda.is_available():
        return "CUDA kernels not executed: torch sees no GPU"
    if not has_cuda_kernel("depthwise_conv"):
        return f"CUDA kernels not executed: {cuda_status()}"
    return None


def on_gpu(test: Any) -> Any:
    """Marks a test as one that needs a GPU."""
    reason = why_no_gpu()
    return pytest.mark.cuda(pytest.mark.skipif(reason is not None, reason=str(reason))(test))


def has_cuda_kernel(op: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"mobilenet_ext::{op}", "CUDA")


# For tests of modules, which take the kernels of the device that their tensors are on.
over_devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(why_no_gpu() is not None, reason=str(why_no_gpu())),
            ],
        ),
    ],
)


def to_gpu(value: Any) -> Any:
    """A tensor, or a list of them, on the GPU, with strides, offset and all around it in memory."""
    if isinstance(value, list):
        return [to_gpu(entry) for entry in value]
    if not isinstance(value, Tensor):
        return value
    storage = value.untyped_storage()
    everything = value.new_empty(0).set_(storage, 0, (len(storage) // value.element_size(),))
    return everything.cuda().as_strided(value.size(), value.stride(), value.storage_offset())


class Cpu:
    """`ops.x(...)` is the op x with the CPU kernels."""

    name = "cpu"

    def why_not(self) -> str | None:
        return None

    def has(self, op: str) -> bool:
        return True

    def __getattr__(self, op: str) -> Op:
        return getattr(torch.ops.mobilenet_ext, op)


class CudaOnHost:
    """`ops.x(...)` is the op x with the CUDA kernels, run by the CPU."""

    name = "cuda_on_host"

    def why_not(self) -> str | None:
        return why_not_on_host()

    def has(self, op: str) -> bool:
        return library().has(op)

    def __getattr__(self, op: str) -> Op:
        return getattr(library().ops, op)


class Gpu:
    """`ops.x(...)` is the op x on the GPU."""

    name = "gpu"
    has_run = False  # any op, since the tests began

    def why_not(self) -> str | None:
        return why_no_gpu()

    def has(self, op: str) -> bool:
        return has_cuda_kernel(op)

    def __getattr__(self, op: str) -> Op:
        def run(*args: Any, **kwargs: Any) -> Any:
            Gpu.has_run = True
            results = getattr(torch.ops.mobilenet_ext, op)(
                *map(to_gpu, args), **{name: to_gpu(value) for name, value in kwargs.items()}
            )
            if isinstance(results, Tensor):
                assert results.is_cuda
                return results.cpu()
            assert all(result.is_cuda for result in results)
            return tuple(result.cpu() for result in results)

        return run


Ops = Cpu | CudaOnHost | Gpu

IMPLEMENTATIONS = (Cpu(), CudaOnHost(), Gpu())
