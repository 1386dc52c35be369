"""Decides whether the CUDA library can be built, with which toolkit and for which GPUs.

Pure decisions: nothing here imports torch or changes the environment, so that each is tested
without a GPU, a toolkit or a CUDA build of torch.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CudaObstacle", "Toolkit", "arch_list", "cuda_policy", "find_toolkit", "toolkit_root"]

DEFAULT_ROOT = Path("/usr/local/cuda")
DEFAULT_ARCHS = ((8, 0), (9, 0), (12, 0))


class CudaObstacle(Exception):
    """What keeps the CUDA library from being built, and how to remove it, in one line."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit.

    Attributes:
        root: The directory that holds bin/nvcc and include/.
        version: nvcc's own (major, minor).
        archs: The compute capabilities nvcc can compile for.
    """

    root: Path
    version: tuple[int, int]
    archs: tuple[tuple[int, int], ...]


def cuda_policy(environ: Mapping[str, str] = os.environ) -> str:
    """Returns "auto", "1" (any obstacle is an error) or "0" (never), as the user asked for."""
    policy = environ.get("MOBILENET_EXT_CUDA", "1" if environ.get("FORCE_CUDA") == "1" else "auto")
    if policy not in ("auto", "0", "1"):
        raise SystemExit(f"MOBILENET_EXT_CUDA must be auto, 1 or 0, got {policy!r}")
    return policy


def find_toolkit(torch_cuda: str | None, environ: Mapping[str, str] = os.environ) -> Toolkit:
    """Returns the toolkit to build with.

    Args:
        torch_cuda: The CUDA version torch was built with, None for a CPU build.
        environ: The environment to look in.

    Raises:
        CudaObstacle: The CUDA library cannot be built.
    """
    if torch_cuda is None:
        raise CudaObstacle("this torch is a CPU build; install a CUDA build of torch")
    root = _locate(environ)
    nvcc = root / "bin" / "nvcc"
    release = re.search(r"release (\d+)\.(\d+)", _output_of(nvcc, "--version"))
    if release is None:
        raise CudaObstacle(f"{nvcc} --version names no release; set CUDA_HOME to a toolkit")
    version = (int(release[1]), int(release[2]))
    if version[0] != int(torch_cuda.split(".")[0]):
        raise CudaObstacle(
            f"torch was built with CUDA {torch_cuda} but {nvcc} is {version[0]}.{version[1]}; "
            "set CUDA_HOME to a toolkit of the same major version"
        )
    listed = re.findall(r"compute_(\d+)(\d)\b", _output_of(nvcc, "--list-gpu-arch"))
    return Toolkit(root, version, tuple(sorted((int(a), int(b)) for a, b in listed)))


def toolkit_root(nvcc: Path) -> Path | None:
    """Returns the toolkit that an nvcc belongs to.

    The nvcc on PATH may be a wrapper script outside the toolkit; its dry run names the real one.
    """
    beside = nvcc.parent.parent
    if _is_toolkit(beside):
        return beside
    named = re.search(r"^#\$ TOP=(.+)$", _output_of(nvcc, "--dryrun", "-x", "cu", os.devnull), re.M)
    if named is None:
        return None
    root = Path(named[1].strip()).resolve()
    return root if _is_toolkit(root) else None


def arch_list(supported: Sequence[tuple[int, int]], visible: Sequence[tuple[int, int]]) -> str:
    """Returns a TORCH_CUDA_ARCH_LIST: the visible GPUs, or else the default ones, plus PTX.

    Args:
        supported: Capabilities nvcc can compile for.
        visible: Capabilities of the GPUs in this machine, empty when there is none.
    """
    newest = max(supported)
    if visible:
        chosen = sorted({min(capability, newest) for capability in visible})
    else:
        chosen = [capability for capability in DEFAULT_ARCHS if capability in supported]
    return ";".join(f"{major}.{minor}" for major, minor in chosen or [newest]) + "+PTX"


def _locate(environ: Mapping[str, str]) -> Path:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if stated := environ.get(variable):
            if not _is_toolkit(Path(stated)):
                raise CudaObstacle(f"{variable}={stated} holds no bin/nvcc and include/")
            return Path(stated)
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    found = toolkit_root(Path(nvcc)) if nvcc else None
    if found is not None:
        return found
    if _is_toolkit(DEFAULT_ROOT):
        return DEFAULT_ROOT
    raise CudaObstacle("no nvcc was found; install the CUDA toolkit or set CUDA_HOME")


def _is_toolkit(root: Path) -> bool:
    return (root / "bin" / "nvcc").exists() and (root / "include" / "cuda_runtime.h").exists()


def _output_of(nvcc: Path, *arguments: str) -> str:
    """Returns what nvcc prints, on either stream; its dry run writes to stderr."""
    try:
        done = subprocess.run(
            [str(nvcc), *arguments], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CudaObstacle(f"{nvcc} does not run ({error}); set CUDA_HOME to a toolkit") from error
    return done.stdout + done.stderr
