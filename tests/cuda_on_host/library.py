"""Loads the CUDA kernels compiled for the host, and knows which of them have run."""

import ctypes
import functools
import os
import re
import subprocess
from pathlib import Path

import torch
from cuda_on_host.build import KERNELS, build
from torch import Tensor

import mobilenet_ext  # noqa: F401  (registers the schemas)

NAMESPACE = "mobilenet_ext_cuda_on_host"
# The library to use instead of one built from the sources as they are.
VARIABLE = "MOBILENET_EXT_CUDA_ON_HOST"


class Library:
    """The library and what the runtime reports."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._schemas = torch.library.Library(NAMESPACE, "DEF")
        for name in torch._C._dispatch_get_all_op_names():
            if name.startswith("mobilenet_ext::"):
                op = getattr(torch.ops.mobilenet_ext, name.removeprefix("mobilenet_ext::"))
                self._schemas.define(str(op.default._schema).removeprefix("mobilenet_ext::"))
        torch.ops.load_library(str(path))
        self._c = ctypes.CDLL(str(path))
        for function in ("launched_kernels", "reached_barriers", "run_sample"):
            getattr(self._c, f"cuda_on_host_{function}").restype = ctypes.c_char_p
        self.ops = getattr(torch.ops, NAMESPACE)

    def has(self, op: str) -> bool:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", "CPU")

    @property
    def orders(self) -> int:
        """How many orders of threads every kernel runs under."""
        return int(self._c.cuda_on_host_orders())

    def launched_kernels(self) -> set[int]:
        """Where those kernels of `all_kernels` are that have run since the library was loaded."""
        offsets = self._c.cuda_on_host_launched_kernels().decode().split()
        return {int(offset, 16) for offset in offsets} & self.all_kernels().keys()

    @functools.cache  # noqa: B019  (there is one library)
    def all_kernels(self) -> dict[int, str]:
        """Every instantiation of a __global__ function, by where it is in the library."""
        listing = _output("nm", "--demangle", "--defined-only", str(self.path)).splitlines()
        symbols = [line.split(maxsplit=2) for line in listing]
        functions = {int(at, 16): name for at, kind, name in symbols if kind in "tTwW"}
        kernels = {
            at: name for at, name in functions.items() if _unqualified(name) in kernel_names()
        }
        assert {_unqualified(name) for name in kernels.values()} == kernel_names()
        return kernels

    def reached_barriers(self) -> set[str]:
        return set(self._c.cuda_on_host_reached_barriers().decode().split())

    def ignore_barrier(self, site: str) -> None:
        """Runs as if there were no such barrier; "" puts all of them back."""
        self._c.cuda_on_host_ignore_barrier(site.encode())

    def plant(self, fault: int) -> None:
        """Puts to work the fault of this number, if the library has such in it; 0: none."""
        self._c.cuda_on_host_plant(fault)

    def run_sample(self, index: int) -> tuple[Tensor, str]:
        """What a kernel of samples.cu has written, and what went wrong with it."""
        out = torch.full((64,), torch.nan)
        error = self._c.cuda_on_host_run_sample(index, ctypes.c_void_p(out.data_ptr()))
        return out, error.decode()


@functools.cache
def kernel_names() -> set[str]:
    """The names of all __global__ functions in the sources."""
    pattern = r"__global__(?:\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\()?"
    texts = (path.read_text(encoding="utf-8") for path in KERNELS.iterdir())
    names = {name for text in texts for name in re.findall(pattern, text)}
    assert "" not in names, "a __global__ function is declared in a way that is not known here"
    return names


@functools.cache
def library() -> Library:
    chosen = os.environ.get(VARIABLE)
    return Library(Path(chosen) if chosen else build())


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _unqualified(function: str) -> str:
    """`f` of `void a::f<b<c>>(d(e))`."""
    shorter = re.sub(r"<[^<>]*>|\([^()]*\)", "", function)
    return shorter.split("::")[-1] if shorter == function else _unqualified(shorter)
