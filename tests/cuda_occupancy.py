"""How many thread blocks of each kernel a multiprocessor holds, from what ptxas said of it.

Threads and the blocks that a kernel asks for are read from its __launch_bounds__. The rules are
those of cuda_occupancy.h in the toolkit. Beside it stands what the design took for granted before
there was a kernel; benchmarks/NOTES.md says why they differ.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cuda_budget import Row

REGISTERS = 65536  # of a multiprocessor; a warp gets them in steps of REGISTER_UNIT
REGISTER_UNIT = 256
REGISTER_FILES = 4  # each serves a quarter of the warps
RESERVED_SHARED = 1024  # bytes of every block
SHARED_UNIT = 128


class Limits(NamedTuple):
    """What one multiprocessor holds."""

    threads: int
    blocks: int
    shared: int  # bytes


LIMITS = {
    "sm_80": Limits(2048, 32, 164 * 1024),
    "sm_90": Limits(2048, 32, 228 * 1024),
    "sm_120": Limits(1536, 24, 100 * 1024),
}


class Estimate(NamedTuple):
    """What the design expected of the kernels whose names match."""

    kernels: str  # a regular expression
    warps: int  # on a multiprocessor
    reason: str


# Nothing was estimated of the others.
ESTIMATES = (
    Estimate(
        r"^depthwise_conv_kernel<SlidingWindow<Channels<\w+, 4>",
        24,
        "36 weights, 12 sums, 12 loaded and 25 other values of 4 channels: some 85 registers, "
        "so three blocks of 256 threads",
    ),
    Estimate(
        r"^backward_window_kernel<BackwardWindow<Channels<\w+, 4>",
        16,
        "9 weights, 9 of their gradients, 3 gradients of inputs, 3 inputs and 3 dy of 4 channels: "
        "108 registers, so four blocks of 128 threads",
    ),
    Estimate(
        r"_kernel<(Sliding|Backward)Window<Pixels<",
        16,
        "a plane of 56 x 56 float32 (12.5 KB) in each of three stages of shared memory, so four "
        "blocks of 128 threads in 164 KB",
    ),
)


class Bounds(NamedTuple):
    """__launch_bounds__: threads of a block, and the blocks asked for (0: not said)."""

    threads: int
    blocks: int


def round_up(value: int, unit: int) -> int:
    """`value`, or the next multiple of `unit`."""
    return -(-value // unit) * unit


def blocks_per_multiprocessor(row: Row, threads: int) -> tuple[int, str]:
    """How many blocks fit, and what keeps out the next."""
    limits = LIMITS[row.arch]
    warps = -(-threads // 32)
    file_warps = REGISTERS // REGISTER_FILES // round_up(row.registers * 32, REGISTER_UNIT)
    shared = round_up(row.shared, SHARED_UNIT) + RESERVED_SHARED
    fit = {
        "registers": file_warps * REGISTER_FILES // warps,
        "threads": limits.threads // (warps * 32),
        "shared memory": limits.shared // shared,
        "blocks": limits.blocks,
    }
    tightest = min(fit, key=lambda name: fit[name])
    return fit[tightest], tightest


def launch_bounds(sources: Path) -> dict[str, Bounds]:
    """The launch bounds of every kernel in a folder, as far as they are numbers or constants."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(sources.rglob("*")))
    constants = {
        name: int(value) for name, value in re.findall(r"\bconstexpr \w+ (k\w+) = (\d+);", text)
    }
    found = {}
    pattern = r"__global__\s+void\s+__launch_bounds__\(\s*(\w+)(?:,\s*([\w:]+))?\s*\)\s*(\w+)"
    for threads, blocks, kernel in re.findall(pattern, text):
        words = (threads, blocks or "0")
        values = [int(word) if word.isdigit() else constants.get(word) for word in words]
        if values[0] is not None:
            found[kernel] = Bounds(values[0], values[1] or 0)
    return found


def table(rows: Iterable[Row], sources: Path) -> str:
    """Markdown, a line for every kernel and architecture."""
    bounds = launch_bounds(sources)
    lines = [
        "| kernel | arch | registers | shared | stack | spills | threads | blocks | of the limit "
        "by | warps | estimated | asked for |",
        "| --- " * 12 + "|",
    ]
    return "\n".join([*lines, *(line(row, bounds.get(row.kernel.split("<")[0])) for row in rows)])


def estimated_warps(kernel: str) -> int | None:
    """The warps on a multiprocessor that the design expected, if it did."""
    found = [each.warps for each in ESTIMATES if re.search(each.kernels, kernel)]
    return found[0] if found else None


def line(row: Row, bounds: Bounds | None) -> str:
    """One line of the table; dashes where the launch bounds are not known."""
    cells: Sequence[object] = ["-"] * 6
    if bounds is not None:
        blocks, limit = blocks_per_multiprocessor(row, bounds.threads)
        warps = blocks * -(-bounds.threads // 32)
        share = f"{warps} of {LIMITS[row.arch].threads // 32}"
        expected = estimated_warps(row.kernel)
        cells = [bounds.threads, blocks, limit, share, expected or "-", bounds.blocks or "-"]
    return "| " + " | ".join(map(str, [f"`{row.kernel}`", *row[1:], *cells])) + " |"
