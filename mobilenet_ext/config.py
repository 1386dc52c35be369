"""What is installed, what loaded and what not, and what to do about it."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

from . import _C
from ._library import build_facts, cuda_status

__all__ = ["doctor", "show_config"]

_REINSTALL = "python -m pip install --force-reinstall --no-deps ."
_VARIABLES = re.compile(r"MOBILENET_EXT_\w+|OMP_NUM_THREADS|CUDA_VISIBLE_DEVICES")


def show_config() -> str:
    """Returns a report of versions, instruction sets, CUDA state and settings, a line for each."""
    facts, info = build_facts(), _C.build_info()
    version, here = importlib.metadata.version("mobilenet_ext"), Path(__file__).parent
    overrides = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if _is_setting(name)]
    rows = {
        "mobilenet_ext": f"{version} in {here}",
        "torch": f"{torch.__version__}, built with {facts.get('torch', info['torch'])}",
        "python": f"{platform.python_version()}, built with {facts.get('python', 'unknown')}",
        "compiler": info["compiler"],
        "cpu": f"{_cpu_name()}, {os.cpu_count()} logical cores",
        "instruction set": f"{_C.isa()}, available: {', '.join(_C.available_isas())}",
        "threads": str(torch.get_num_threads()),
        "CUDA library": cuda_status(),
        "GPUs": ", ".join(_gpus()) or "none that torch can see",
        "settings": ", ".join(overrides) or "none",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def doctor() -> int:
    """Prints the report and, for everything that is wrong, what to do; returns 0 if nothing is."""
    print(show_config())
    problems = _problems()
    for problem in problems:
        print(f"\nproblem: {problem}")
    print(f"\n{'no problem' if not problems else f'{len(problems)} problem(s)'} found")
    return 1 if problems else 0


def _problems() -> list[str]:
    """Returns what is wrong, each with its remedy."""
    found = []
    best = _C.available_isas()[-1]
    if _C.isa() != best:
        found.append(
            f"the {_C.isa()} kernels are in use though this CPU runs {best}; "
            "unset MOBILENET_EXT_ISA or set it to that"
        )
    if torch.cuda.is_available() and not cuda_status().startswith("loaded"):
        found.append(
            f"torch sees a GPU but the CUDA library is {cuda_status()}; in the source tree, "
            f"MOBILENET_EXT_CUDA=1 {_REINSTALL}"
        )
    if cuda_status().startswith("loaded"):
        found += _unsupported_gpus(build_facts().get("cuda_archs", ""))
    if not _computes_correctly():
        found.append(f"the kernels compute wrong values here; rebuild: {_REINSTALL}")
    return found


def _unsupported_gpus(archs: str) -> list[str]:
    """Returns a problem for each visible GPU that none of the architectures built for covers."""
    built = re.findall(r"(\d+)\.(\d+)\w*(\+PTX)?", archs)
    found = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        covered = any(
            (int(a) == major and int(b) <= minor) or (ptx and (int(a), int(b)) <= (major, minor))
            for a, b, ptx in built
        )
        if not covered:
            found.append(
                f"GPU {index} has compute capability {major}.{minor}, the CUDA library was built "
                f"for {archs}; rebuild: TORCH_CUDA_ARCH_LIST={major}.{minor} {_REINSTALL}"
            )
    return found


def _computes_correctly() -> bool:
    """Runs one small op on values whose result is known exactly."""
    values = torch.arange(-8.0, 8.0).reshape(1, 4, 2, 2)
    scale, shift = torch.full((4,), 2.0), torch.full((4,), 1.0)
    result = torch.ops.mobilenet_ext.scale_shift_act(values, scale, shift, 2)
    return torch.equal(result, (values * 2 + 1).clamp(0, 6))


def _is_setting(name: str) -> bool:
    return _VARIABLES.fullmatch(name) is not None


def _gpus() -> list[str]:
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} ({major}.{minor})")
    return names


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()
