"""What is compiled and how: the part of the build that needs torch.

`_C` is the extension module with the CPU kernels, always built. `_C_cuda` is a plain shared
library with the CUDA kernels, built when this machine can; it is apart from `_C` because it links
torch's CUDA libraries, without which `_C` must still load.
"""

import json
import os
import platform
import sys
from pathlib import Path

import torch
from find_cuda import CudaObstacle, Toolkit, arch_list, cuda_policy, find_toolkit
from find_torch import MINIMUM_TORCH
from setuptools import Extension
from torch.utils import cpp_extension

__all__ = ["build_command", "plan"]

PACKAGE = "mobilenet_ext"
CUDA_LIBRARY = "mobilenet_ext._C_cuda"
# Compiled against the interface of the oldest torch, the libraries run under every newer one.
TARGET_TORCH = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000ULL".format(*MINIMUM_TORCH)
GIGABYTES_PER_JOB = 2


def plan() -> tuple[list[Extension], dict[str, str]]:
    """Returns the extensions to build and the facts about them that the package will report."""
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < MINIMUM_TORCH:
        needed = ".".join(map(str, MINIMUM_TORCH))
        raise SystemExit(f"mobilenet_ext needs torch>={needed}, got torch {torch.__version__}")
    os.environ.setdefault("MAX_JOBS", str(_parallel_jobs()))
    facts = {"torch": str(torch.__version__), "python": platform.python_version()}
    extensions = [_cpu_extension()]
    toolkit, facts["cuda"] = _choose_cuda()
    if toolkit is not None:
        facts["cuda_archs"] = os.environ["TORCH_CUDA_ARCH_LIST"]
        extensions.append(_cuda_extension())
    return extensions, facts


def build_command(facts: dict[str, str]) -> type[cpp_extension.BuildExtension]:
    """Returns torch's build_ext, which then writes `facts` to _build.json beside the libraries."""

    class BuildAndRecord(cpp_extension.BuildExtension):
        def run(self) -> None:
            super().run()
            directory = Path(PACKAGE) if self.inplace else Path(self.build_lib) / PACKAGE
            if all(extension.name != CUDA_LIBRARY for extension in self.extensions):
                stale = directory / Path(self.get_ext_filename(CUDA_LIBRARY)).name
                stale.unlink(missing_ok=True)
            text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
            (directory / "_build.json").write_text(text, encoding="utf-8")

    return BuildAndRecord


def _cpu_extension() -> Extension:
    sources = sorted(map(str, Path("csrc/kernels/cpu").glob("*.cpp")))
    bindings = ("checks", "library", "module", "tensor_state")
    sources += [f"csrc/bindings/{name}.cpp" for name in bindings]
    extension = cpp_extension.CppExtension(f"{PACKAGE}._C", sources)
    return _adapt(extension, {"cxx": _cxx_flags()})


def _cuda_extension() -> Extension:
    sources = _cuda_sources()
    sources += [f"csrc/bindings/{name}.cpp" for name in ("checks", "library_cuda")]
    extension = cpp_extension.CUDAExtension(CUDA_LIBRARY, sources)
    nvcc = ["-O3", "-Xcompiler", "-fvisibility=hidden"]
    if _warnings_are_errors():
        nvcc += ["-Werror", "all-warnings"]
    return _adapt(extension, {"cxx": [*_cxx_flags(), "-DUSE_CUDA"], "nvcc": nvcc})


def _adapt(extension: Extension, flags: dict[str, list[str]]) -> Extension:
    """Sets the flags, and treats others' headers as system headers, whose warnings are not ours.

    torch's Python bindings are not linked: nothing here uses them.
    """
    extension.libraries.remove("torch_python")
    if os.name != "nt":
        system = [flag for path in extension.include_dirs for flag in ("-isystem", path)]
        flags = {compiler: own + system for compiler, own in flags.items()}
        extension.include_dirs = []
    extension.include_dirs.append(str(Path("csrc").resolve()))
    extension.extra_compile_args = flags  # type: ignore[assignment]  # torch takes a dict
    return extension


def _cuda_sources() -> list[str]:
    return sorted(map(str, Path("csrc/kernels/cuda").glob("*.cu")))


def _cxx_flags() -> list[str]:
    if os.name == "nt":
        return ["/O2", TARGET_TORCH]
    flags = ["-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", TARGET_TORCH]
    return [*flags, "-Werror"] if _warnings_are_errors() else flags


def _warnings_are_errors() -> bool:
    return os.environ.get("MOBILENET_EXT_WERROR") == "1"


def _choose_cuda() -> tuple[Toolkit | None, str]:
    """Returns the CUDA toolkit to use, if any, and one line that says what was decided and why."""
    policy = cuda_policy()
    if policy == "0":
        return None, "not built: MOBILENET_EXT_CUDA=0"
    try:
        if not _cuda_sources():
            raise CudaObstacle("this source tree has no CUDA kernels")
        toolkit = find_toolkit(torch.version.cuda)
    except CudaObstacle as obstacle:
        if policy == "1":
            raise SystemExit(f"mobilenet_ext: MOBILENET_EXT_CUDA=1, but {obstacle}") from None
        print(f"mobilenet_ext: building for CPU only: {obstacle}", file=sys.stderr)
        return None, f"not built: {obstacle}"
    # torch guesses once, on import, from the nvcc on PATH; a wrapper script there misleads it.
    os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = str(toolkit.root)
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        visible = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        os.environ["TORCH_CUDA_ARCH_LIST"] = arch_list(toolkit.archs, visible)
    return toolkit, "built with CUDA {}.{}".format(*toolkit.version)


def _parallel_jobs() -> int:
    """Returns how many compilers to run at once, by cores and by free memory."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return cores
    free = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 0)
    return max(1, min(cores, free // (GIGABYTES_PER_JOB * 2**20))) if free else cores
