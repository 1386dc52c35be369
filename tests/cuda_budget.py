#!/usr/bin/env python3
"""Checks what every CUDA kernel costs its GPU against cuda_budget.txt, without a GPU.

    python tests/cuda_budget.py               # compiles csrc/kernels/cuda, a minute or two
    python tests/cuda_budget.py --log PATH    # reads the log of a build instead, see .ci/run
    python tests/cuda_budget.py --update      # makes the file what the compiler says now
    python tests/cuda_budget.py --table       # Markdown, with the blocks a multiprocessor holds

Exits with 1 when anything differs, with 3 when nvcc is not the one that the file was made with.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BUDGET = ROOT / "tests/cuda_budget.txt"
SOURCES = ROOT / "csrc/kernels/cuda"
ARCHS = ("80", "90", "120")
# These kernels take what the fast ones do not, and may use local memory. All others may not.
GENERIC = re.compile(r"\b[Aa]ny\w+<|\bdouble\b")
# But for a few registers that ptxas puts aside for a strip on the architecture whose code it
# schedules for more of them: bytes of stack and of spills there.
SPARED = {"sm_120": (24, 80)}
ACTIVATIONS = ("none", "relu", "relu6")
HEADER = """\
# What ptxas says of every kernel, made by: python tests/cuda_budget.py --update
# nvcc {nvcc}
# arch  registers  shared  stack  spills  kernel (bytes; spills are stores and loads)
"""


class Row(NamedTuple):
    """One kernel on one architecture; all but registers in bytes."""

    kernel: str
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int


def parse(log: str) -> list[Row]:
    """The kernels that `ptxas -v` speaks of, sorted; one compiled in several files comes once.

    Raises:
        ValueError: two compilers wrote into each other's lines.
    """
    found: list[Row] = []
    entry: tuple[str, str] | None = None
    stack = spills = 0
    for line in log.splitlines():
        if start := re.search(r"Compiling entry function '(\S+)' for '(sm_\w+)'", line):
            if entry is not None:
                raise ValueError(f"ptxas said nothing about the registers of {entry[0]}")
            entry, stack, spills = (start[1], start[2]), 0, 0
        elif frame := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            # More than one where a function was not inlined.
            stack = max(stack, int(frame[1]))
            spills += int(frame[2]) + int(frame[3])
        elif used := re.search(r"Used (\d+) registers(.*)", line):
            if entry is None:
                raise ValueError(f"ptxas did not say of which kernel: {line.strip()}")
            shared = re.search(r"(\d+) bytes smem", used[2])
            called = re.search(r"(\d+) bytes cumulative stack size", used[2])
            stack = max(stack, int(called[1]) if called else 0)
            found.append(Row(*entry, int(used[1]), int(shared[1]) if shared else 0, stack, spills))
            entry = None
    names = demangled(sorted({row.kernel for row in found}))
    merged: dict[tuple[str, str], Row] = {}
    for row in found:
        key = (names[row.kernel], row.arch)
        both = zip(row[2:], merged.get(key, row)[2:], strict=True)
        merged[key] = Row(*key, *(max(pair) for pair in both))
    return in_order(merged.values())


def in_order(rows: Iterable[Row]) -> list[Row]:
    """The same, by kernel and from the oldest architecture on."""
    return sorted(rows, key=lambda row: (row.kernel, int(row.arch.removeprefix("sm_"))))


def demangled(names: Sequence[str]) -> dict[str, str]:
    """Short readable names: kernel<arguments>, without namespaces, parameters and return type."""
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return {name: short(text) for name, text in zip(names, done.stdout.splitlines(), strict=True)}


def short(signature: str) -> str:
    """E.g. `f<Normalize<float, 4, relu6>>` of `void a::f<a::Normalize<float, 4, (...)2> >(P)`."""
    name = re.sub(r"mobilenet_ext::(cuda::)?|\(anonymous namespace\)::", "", signature)
    name = re.sub(r"\(Activation\)(\d)", lambda match: ACTIVATIONS[int(match[1])], name)
    name = re.sub(r"^void ", "", name.replace(" >", ">"))
    depth = 0
    for at, letter in enumerate(name):  # parameters begin at the first ( outside of < >
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return name[:at]
    return name


def read_budget(text: str) -> tuple[str, list[Row]]:
    """The nvcc that the file was made with, and its rows."""
    nvcc = re.search(r"^# nvcc (\S+)", text, re.MULTILINE)
    rows = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            arch, registers, shared, stack, spills, kernel = line.split(None, 5)
            numbers = (int(registers), int(shared), int(stack), int(spills))
            rows.append(Row(kernel, arch, *numbers))
    return nvcc[1] if nvcc else "unknown", rows


def write_budget(nvcc: str, rows: Iterable[Row]) -> str:
    """The text of the file."""
    lines = [
        f"{row.arch:<6} {row.registers:>10} {row.shared:>7} {row.stack:>6} {row.spills:>7}  "
        f"{row.kernel}\n"
        for row in in_order(rows)
    ]
    return HEADER.format(nvcc=nvcc) + "".join(lines)


def is_spared(row: Row) -> bool:
    """Whether a fast kernel may keep that much outside of its registers."""
    stack, spills = SPARED.get(row.arch, (0, 0))
    return row.stack <= stack and row.spills <= spills


def local_memory(rows: Iterable[Row]) -> list[str]:
    """One line for every fast kernel that keeps something outside of its registers."""
    return [
        f"{row.kernel} on {row.arch}: {row.stack} bytes of stack and {row.spills} bytes of spills "
        "in a fast kernel, which must have none"
        for row in rows
        if not (is_spared(row) or GENERIC.search(row.kernel))
    ]


def drift(found: Iterable[Row], budget: Iterable[Row]) -> list[str]:
    """One line for everything in which the kernels are not what the budget says."""
    now = {row[:2]: row for row in found}
    then = {row[:2]: row for row in budget}
    lines = [f"{k} on {a}: not in the budget" for k, a in now if (k, a) not in then]
    lines += [f"{k} on {a}: in the budget, not compiled" for k, a in then if (k, a) not in now]
    for key, row in now.items():
        for name, value in zip(Row._fields[2:], row[2:], strict=True):
            allowed = getattr(then.get(key, row), name)
            if value != allowed:
                change = "more than" if value > allowed else "less than (good: update the file)"
                lines.append(f"{row.kernel} on {row.arch}: {value} {name}, {change} {allowed}")
    return lines


def nvcc_version(nvcc: str) -> str:
    """E.g. 13.0.88."""
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"\bV(\d+\.\d+\.\d+)", done.stdout)
    if version is None:
        raise SystemExit(f"{nvcc} --version names no version")
    return version[1]


def find_nvcc() -> str:
    """The compiler that the build takes."""
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home) / "bin/nvcc") if home else shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("no nvcc on PATH; set CUDA_HOME")
    return nvcc


def compile_all(nvcc: str, archs: Sequence[str]) -> str:
    """Compiles every kernel as the build does, device code only; what ptxas says about it."""
    codes = [f"--generate-code=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    flags = [*codes, "-O3", f"-I{ROOT / 'csrc'}", "-Werror", "all-warnings", "-Xptxas", "-v"]

    def one(source: Path) -> str:
        with tempfile.TemporaryDirectory() as folder:
            output = str(Path(folder) / "kernels.fatbin")
            command = [nvcc, *flags, "-fatbin", "-o", output, str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{source} does not compile:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        return "\n".join(pool.map(one, sorted(SOURCES.glob("*.cu"))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares, or updates, or prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, help="of a build, instead of compiling")
    parser.add_argument("--archs", nargs="+", default=list(ARCHS), help="default: 80 90 120")
    parser.add_argument("--budget", type=Path, default=BUDGET)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    nvcc = find_nvcc()
    log = (
        options.log.read_text(errors="replace") if options.log else compile_all(nvcc, options.archs)
    )
    chosen = {f"sm_{arch}" for arch in options.archs}
    rows = parse(compile_all(nvcc, options.archs) if log is None else log)
    rows = [row for row in rows if row.arch in chosen]
    if options.table:
        from cuda_occupancy import table

        print(table(rows, SOURCES))
    version = nvcc_version(nvcc)
    if options.update:
        options.budget.write_text(write_budget(version, rows), encoding="utf-8")
        print(f"wrote {len(rows)} rows to {options.budget}")
    return report(rows, version, options.budget.read_text(encoding="utf-8"), chosen)


def report(rows: Sequence[Row], version: str, budget: str, archs: set[str]) -> int:
    """Prints what is wrong, or that nothing is; the exit status."""
    made_with, allowed = read_budget(budget)
    complaints = local_memory(rows)
    if version.rsplit(".", 1)[0] != made_with.rsplit(".", 1)[0]:
        print(f"NOT CHECKED: nvcc is {version}, the budget was made with {made_with}")
        return 1 if print_all(complaints) else 3
    complaints += drift(rows, [row for row in allowed if row.arch in archs])
    if print_all(complaints):
        print("if that is as it should be: python tests/cuda_budget.py --update")
        return 1
    kernels = len({row.kernel for row in rows})
    print(f"{kernels} kernels on {', '.join(sorted(archs))} are as budgeted with nvcc {version}")
    return 0


def print_all(lines: Sequence[str]) -> bool:
    """Whether there was anything to print."""
    print("\n".join(lines), end="\n" if lines else "")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
