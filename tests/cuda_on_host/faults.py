"""Faults in the text of the kernels, and the tests of the ops that must notice them.

All of them are planted in one library, where one at a time is at work. To run their tests is a
process of its own, as two such libraries cannot be in one:

    MOBILENET_EXT_CUDA_ON_HOST=library.so python -m cuda_on_host.faults RESULTS.json
"""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_on_host.build import CSRC, KERNELS, build
from cuda_on_host.library import VARIABLE, library

FORWARD = "test_depthwise_conv.py"
BACKWARD = "test_depthwise_conv_backward.py"
NORM = "test_batch_norm_ops.py"


@dataclass(frozen=True)
class Fault:
    """A text that occurs once in the kernels, and what takes its place.

    There, PLANTED is true while the fault is at work. `noticed_by`: a test file, and what selects
    its tests as `pytest -k` has it; some of every selection must fail.
    """

    text: str
    instead: str
    noticed_by: tuple[tuple[str, str], ...]


# Of convolutions: vectors of channels, vectors of pixels, single values in NHWC and in NCHW.
_WINDOWS = (
    (FORWARD, "whole_vectors and float32"),
    (FORWARD, "vectors_of_pixels and float32"),
    (FORWARD, "raw_output and channels_9"),
    (FORWARD, "raw_output and nchw_odd_map"),
)
_BACKWARD_WINDOWS = (
    (BACKWARD, "whole_vectors and float32 and not pixels"),
    (BACKWARD, "two_batch_norms and nchw_vectors_stride_2"),
    (BACKWARD, "two_batch_norms and channels_9"),
    (BACKWARD, "two_batch_norms and nchw_odd_map"),
)
_ANY_CASES = ("stride_3", "kernel_5_stride_2", "nchw_dilation_2")
_ANY_WINDOWS = tuple((FORWARD, f"raw_output and {case}") for case in _ANY_CASES)
_ANY_BACKWARD = tuple((BACKWARD, f"two_batch_norms and {case}") for case in _ANY_CASES)
_MAPS = tuple(
    (NORM, f"{test} and {case}")
    for test in ("act_and_its_backward", "test_statistics")
    for case in ("channels_16", "channels_9", "nchw_vectors_of_many_images", "nchw_odd_map")
)

FAULTS = {
    # One row or column of the halo, in each kernel that has one.
    "halo": Fault(
        "const int64_t begin = first < 0 ? -first : 0, end = size - first;",
        "const int64_t begin = first < 0 ? -first : 0, end = size - first - PLANTED;",
        (*_WINDOWS, *_BACKWARD_WINDOWS),
    ),
    "column": Fault(
        "from, has(column < 0 ? 0 : column));",
        "from, has(column < 0 ? 0 : column) && !(PLANTED && v == kVectors - 1));",
        (*_WINDOWS[:2], *_BACKWARD_WINDOWS[:2]),
    ),
    "wait_for_row": Fault(
        "cuda_on_host::copies().wait(kGroups);",
        "cuda_on_host::copies().wait(kGroups + PLANTED);",
        (*_WINDOWS, *_BACKWARD_WINDOWS),
    ),
    "place_in_use": Fault(
        "return after < kPlaces ? after : after - kPlaces;",
        "return (after < kPlaces ? after : after - kPlaces) % (kPlaces - PLANTED);",
        (*_WINDOWS, *_BACKWARD_WINDOWS),
    ),
    "row_of_any": Fault(
        "if (y < 0 || y >= s.in_height) continue;",
        "if (y < 0 || y >= s.in_height - PLANTED) continue;",
        _ANY_WINDOWS,
    ),
    "grad_input_of_any": Fault(
        "{ return rest == 0 && at >= 0 && at < size; }",
        "{ return rest == 0 && at >= 0 && at < size - PLANTED; }",
        _ANY_BACKWARD,
    ),
    "grad_weight_of_any": Fault(
        "if (y < 0 || y >= s.in_height || x < 0 || x >= s.in_width) return;",
        "if (y < 0 || y >= s.in_height - PLANTED || x < 0 || x >= s.in_width) return;",
        _ANY_BACKWARD,
    ),
    # How work is split.
    "partition": Fault(
        "{ return (a + b - 1) / b; }",
        "{ return (a + b - 1 - PLANTED) / b; }",
        ((FORWARD, "every_dtype and float32"), (BACKWARD, "every_dtype and float32"), *_MAPS[:2]),
    ),
    "strips": Fault(
        "index < p.strips; index += p.partitions * p.positions)",
        "index < p.strips - PLANTED; index += p.partitions * p.positions)",
        (*_WINDOWS, *_BACKWARD_WINDOWS, *_ANY_WINDOWS, *_ANY_BACKWARD),
    ),
    "tail_of_tiles": Fault(
        "p.tiles = ceil_div(p.pixels, int64_t{pixels_of_thread} * p.positions);",
        "p.tiles = ceil_div(p.pixels, int64_t{pixels_of_thread} * p.positions) - PLANTED;",
        _MAPS,
    ),
    "tail_of_matrix": Fault(
        ": left_(p.pixels - index",
        ": left_(p.pixels - PLANTED - index",
        (_MAPS[0], _MAPS[4]),
    ),
    "tail_of_planes": Fault(
        "left_ = p.pixels - first;",
        "left_ = p.pixels - PLANTED - first;",
        (*_MAPS[1:4], *_MAPS[5:]),
    ),
    "next_plane": Fault(
        "if (pixel < p.plane) continue;",
        "if (pixel < p.plane + PLANTED) continue;",
        ((NORM, "nchw_image_groups"), (NORM, "test_statistics and nchw_image_groups")),
    ),
    # How sums are added up.
    "position": Fault(
        "for (int q = first; q < end; q += step) {",
        "for (int q = first; q < end - PLANTED; q += step) {",
        (*_BACKWARD_WINDOWS, *_MAPS[:4]),
    ),
    "partial_sums": Fault(
        "works && p < from.partitions; p += kSumSlices)",
        "works && p < from.partitions - PLANTED; p += kSumSlices)",
        (*_BACKWARD_WINDOWS, *_MAPS[:4]),
    ),
    "partial_moments": Fault(
        "works && p < from.partitions; p += kMergeSlices)",
        "works && p < from.partitions - PLANTED; p += kMergeSlices)",
        (*_WINDOWS, *_MAPS[4:]),
    ),
}
# Not a fault: long strips and several for each thread, as large tensors have them, which would take
# too long here. No test may fail.
LONG_STRIPS = "long_strips"
# Faults that matter in long strips only, which they get.
NEED_LONG_STRIPS = ("place_in_use",)
_CONVOLUTIONS = "not float64 and not float16 and not bfloat16"
_LONG_STRIPS_TESTS = ((FORWARD, _CONVOLUTIONS), (BACKWARD, _CONVOLUTIONS))
# What it reads is masked afterwards, but nobody knows what lies there.
READ_OUTSIDE = Fault(
    "if (cursor.inside_rows >> ahead & 1) {",
    "if (PLANTED || cursor.inside_rows >> ahead & 1) {",
    (_WINDOWS[0],),
)


def build_with_faults(folder: Path) -> Path:
    """The library with all of FAULTS and LONG_STRIPS in its float32 kernels."""
    for number, fault in enumerate(FAULTS.values(), 1):
        plant(fault, number, folder)
    numbers = [number for number, name in enumerate(FAULTS, 1) if name in NEED_LONG_STRIPS]
    faults = ", ".join(map(str, [*numbers, len(FAULTS) + 1]))
    header = folder / "kernels/cuda/partition.h"
    text = header.read_text("utf-8")
    for name in ("kWantedThreads", "kMaxBlocks", "kSumBlocks"):
        old = f"constexpr int64_t {name} = "
        assert text.count(old) == 1, name
        value = text.split(old)[1].split(";")[0]
        new = f"inline const ::cuda_on_host::Few<{value}, {faults}> {name}"
        text = text.replace(f"{old}{value}", new)
    header.write_text(text, "utf-8")
    return build(overlay=folder, only="*float32.cu")


def plant(fault: Fault, number: int, folder: Path) -> None:
    """Writes the kernel's source with the fault in it to the folder, in place of csrc."""
    holders = [path for path in KERNELS.iterdir() if fault.text in path.read_text("utf-8")]
    assert len(holders) == 1, f"{fault.text!r} must be in one file, is in {holders}"
    changed = folder / holders[0].relative_to(CSRC)
    text = (changed if changed.exists() else holders[0]).read_text("utf-8")
    assert text.count(fault.text) == 1, fault.text
    instead = fault.instead.replace("PLANTED", f"::cuda_on_host::planted({number})")
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text(text.replace(fault.text, instead), "utf-8")


def options_of(tests: tuple[str, str]) -> list[str]:
    """What pytest runs to notice a fault."""
    return [tests[0], "-k", f"cuda_on_host and {tests[1]}"]


def run(number: int, tests: Iterable[tuple[str, str]]) -> list[int]:
    """The exit statuses of pytest with one fault at work."""
    library().plant(number)
    plain = ("-x", "-q", "-p", "no:cacheprovider")
    return [int(pytest.main([*plain, *options_of(each)])) for each in tests]


def main() -> None:
    """Writes the exit statuses for every fault, in the order of its selections."""
    assert os.environ.get(VARIABLE), f"{VARIABLE} must name a library with faults in it"
    found = {
        name: run(number, fault.noticed_by)
        for number, (name, fault) in enumerate(FAULTS.items(), 1)
    }
    found[LONG_STRIPS] = run(len(FAULTS) + 1, _LONG_STRIPS_TESTS)
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
