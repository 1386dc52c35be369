"""Loads the compiled libraries, loudly, and says what is there.

Importing this module registers every op of `torch.ops.mobilenet_ext`. `_C` (all schemas, the CPU
kernels) must load. `_C_cuda` (the CUDA kernels) is optional; when it is missing, cuda_status()
says why.
"""

import json
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

__all__ = ["build_facts", "cuda_status", "has_kernels"]

_HERE = Path(__file__).resolve().parent
_REBUILD = "python -m pip install --force-reinstall --no-deps ."


def build_facts() -> dict[str, str]:
    """Returns what the build wrote down: torch, python, cuda (built, or why not), cuda_archs."""
    try:
        facts: dict[str, str] = json.loads((_HERE / "_build.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return facts


def cuda_status() -> str:
    """Returns one line about the CUDA library: loaded, or why not."""
    return _CUDA_STATUS


def has_kernels(device: torch.device) -> bool:
    """Returns whether every op has a kernel for this device."""
    return device.type in _DEVICES_WITH_KERNELS


def _binary(name: str) -> Path | None:
    """Returns the compiled library of this name for this Python, if it was built."""
    files = (_HERE / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _load_cpu() -> None:
    try:
        from . import _C  # noqa: F401
    except ImportError as error:
        raise ImportError(_explain(error)) from error


def _explain(error: ImportError) -> str:
    """Returns the likeliest reason why _C did not load, and the command that mends it."""
    if _binary("_C") is not None:
        built = build_facts().get("torch", "an unknown torch")
        return (
            f"mobilenet_ext._C was built with torch {built} and does not load under torch "
            f"{torch.__version__}: {error}. Rebuild it in the source tree: {_REBUILD}"
        )
    others = sorted(file.name for file in _HERE.glob("_C.*") if file.suffix in (".so", ".pyd"))
    if others:
        return (
            f"mobilenet_ext._C was compiled for another Python ({', '.join(others)}). "
            f"Rebuild it in the source tree: {_REBUILD}"
        )
    if (_HERE.parent / "setup.py").is_file():
        return (
            f"mobilenet_ext was imported from its source tree {_HERE.parent}, which holds no "
            "compiled library. Compile in place (python -m pip install -e .), or install "
            "(python -m pip install .) and run from another directory"
        )
    return (
        f"mobilenet_ext is installed without its compiled library in {_HERE}. "
        f"Rebuild it in the source tree: {_REBUILD}"
    )


def _load_cuda() -> str:
    """Loads the CUDA kernels and returns the status line."""
    library = _binary("_C_cuda")
    if library is None:
        return build_facts().get("cuda", "not built: the build left no record")
    if torch.version.cuda is None:
        return f"not loaded: torch {torch.__version__} is a CPU build"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        warnings.warn(f"mobilenet_ext: the CUDA library does not load: {error}", stacklevel=2)
        return f"not loaded: {error}"
    archs = build_facts().get("cuda_archs", "unknown architectures")
    count = f"{len(_ops('CUDA'))} of {len(_ops() - _CPU_ONLY)} ops"
    return f"loaded for {archs}, with kernels for {count}"


def _ops(dispatch_key: str = "") -> set[str]:
    """Returns the ops that have a kernel under this key, or all ops."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key(dispatch_key)
    return {name for name in names if name.startswith("mobilenet_ext::")}


# Elsewhere the layers of a network run one by one, and products are the device's library's.
_CPU_CONVS = ("pointwise_conv", "image_conv")
_CPU_ONLY = {
    f"mobilenet_ext::{op}"
    for op in ("mobilenet", *_CPU_CONVS, *(f"{conv}_backward" for conv in _CPU_CONVS))
}

_load_cpu()
_CUDA_STATUS = _load_cuda()
_DEVICES_WITH_KERNELS = frozenset(
    device
    for device, key in {"cpu": "CPU", "cuda": "CUDA"}.items()
    if _ops(key) | _CPU_ONLY == _ops()
)
