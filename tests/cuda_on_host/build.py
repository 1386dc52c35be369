"""Compiles the CUDA kernels for the host, with the runtime in this folder in place of CUDA's.

Object files are kept by the hash of all that goes into them, under build/cuda_on_host, so that only
what has changed is compiled again.
"""

import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
KERNELS = CSRC / "kernels/cuda"
BUILD = ROOT / "build/cuda_on_host"

# CUDA's keywords. Shared memory is a thread-local segment, see shared_memory.h.
KEYWORDS = (
    "-D__global__=", "-D__device__=", "-D__host__=", "-D__shared__=thread_local",
    "-D__forceinline__=inline", "-D__launch_bounds__(...)=",
)  # fmt: skip
# Other libraries' variables of the same name stay other variables.
FLAGS = (
    "-O1", "-g1", "-fPIC", "-fno-gnu-unique", "-ffp-contract=off", "-fno-strict-aliasing",
    "-std=c++20", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
    "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
    *(["-Werror"] if os.environ.get("MOBILENET_EXT_WERROR") == "1" else []),
)  # fmt: skip
# An address may be computed that is not used in the end.
SANITIZE = (
    "-fsanitize=address,undefined", "-fno-sanitize=pointer-overflow", "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)  # fmt: skip
# torch hides what is in its headers; kernels stay visible, so that they can be named at run time.
WITH_TORCH = [
    "-fvisibility=hidden",
    *(flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)),
]
TORCH_LIB = str(Path(torch.__file__).parent / "lib")


def _sources() -> list[Path]:
    return [
        *sorted(KERNELS.glob("*.cu")),
        CSRC / "bindings/checks.cpp",
        *sorted(HERE.glob("*.c[pu]*")),
    ]


def build(*, sanitize: bool = False, overlay: Path | None = None, only: str = "*") -> Path:
    """Returns the library, compiled if need be.

    `overlay`: a folder that is searched for headers before csrc, by the sources that match `only`.
    """
    command = ["g++", *FLAGS, *KEYWORDS, *(SANITIZE if sanitize else ())]

    def compiled(source: Path) -> Path:
        changed = [overlay] if overlay and source.match(only) else []
        return _compile(command, source, [HERE, *changed, CSRC])

    # Of functions that are in several objects, the linker takes the first.
    ordered = sorted(_sources(), key=lambda source: not source.match(only))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compiled, ordered))
    name = hashlib.sha256("\n".join(path.name for path in objects).encode()).hexdigest()[:16]
    library = BUILD / f"cuda_on_host_{name}.so"
    if not library.exists():
        link = [*command, "-shared", *map(str, objects), f"-L{TORCH_LIB}"]
        _run([*link, "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"], library)
    return library


def _compile(command: Sequence[str], source: Path, folders: Sequence[Path]) -> Path:
    """Returns the object file of one source."""
    includes, seen = [source], set[Path]()
    digest = hashlib.sha256(f"{command} {source} {torch.__version__} {TORCH_LIB}".encode())
    uses_torch = False
    while includes:
        path = includes.pop()
        if path in seen:
            continue
        seen.add(path)
        text = path.read_text(encoding="utf-8")
        digest.update(f"{path.name}\n{text}".encode())
        for name in re.findall(r'^#include [<"]([\w./]+)[>"]', text, re.MULTILINE):
            uses_torch |= name.startswith("torch/")
            found = (folder / name for folder in (path.parent, *folders))
            includes += [file for file in found if file.is_file()][:1]
    target = BUILD / f"{source.stem}_{digest.hexdigest()[:16]}.o"
    if not target.exists():
        flags = [*(f"-I{folder}" for folder in folders), *(WITH_TORCH if uses_torch else ())]
        _run([*command, *flags, "-x", "c++", "-c", str(source)], target)
    return target


def _run(command: Sequence[str], target: Path) -> None:
    """Runs a compiler to make `target`, which is either complete or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}{target.suffix}")
    done = subprocess.run(
        [*command, "-o", str(partial)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    partial.replace(target)
