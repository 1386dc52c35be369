#!/usr/bin/env python3
"""What the numbers were measured on: processor, GPU, versions, commit, date.

python benchmarks/machine.py --device cuda --json machine.json
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence

import torch

PACKAGES = ("torch", "numpy", "onnxruntime", "openvino", "ai-edge-litert")
CONFIG = ("compiler", "instruction set", "CUDA library", "settings")  # rows of show_config to keep


def describe(device: str = "cpu") -> dict[str, object]:
    """Return the machine, the versions of everything that competes, the commit and the date."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "preloaded": preloaded(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "driver": driver() if device.startswith("cuda") else None,
        "cuda": torch.version.cuda,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES if version(name)},
        "mobilenet_ext": {
            "version": version("mobilenet_ext"),
            "config": config(),
        },
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def config() -> dict[str, str]:
    """Return what `show_config` says about the kernels in use."""
    import mobilenet_ext

    rows = [line.split("  ", 1) for line in mobilenet_ext.show_config().splitlines()]
    told = {row[0]: row[1].strip() for row in rows if len(row) == 2}
    return {name: told[name] for name in CONFIG if name in told}


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def preloaded() -> list[str]:
    """Return the names of the libraries loaded before all others, as without_avx512.so."""
    return [pathlib.Path(name).name for name in os.environ.get("LD_PRELOAD", "").split(":") if name]


def driver() -> str | None:
    """Return the version of the GPU's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else None


def version(package: str) -> str | None:
    """Return the installed version of `package`, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the git commit of this checkout, marked `-dirty` when files differ from it."""
    here = pathlib.Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, check=False, cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=pathlib.Path, metavar="PATH", required=True)
    options = parser.parse_args(arguments)
    content = describe(options.device)
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
