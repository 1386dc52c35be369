#!/usr/bin/env python3
"""Measure the ops on MobileNet's nine depthwise layers, the whole of a mode or one by one.

    python benchmarks/ops.py                       # under a minute
    python benchmarks/ops.py --batch 32 --threads 1 --json results/ops.json
    python benchmarks/ops.py --device cuda --batch 256 --dtype bfloat16 --mode conv-backward
    python benchmarks/ops.py --device cuda --mode ops --layout contiguous

GB/s counts the least traffic that the op allows; "% copy" compares it with a copy, measured in the
same rounds: of as many bytes on a CPU, on a GPU of a gigabyte and with a cold cache (cold.py).
Every value is verified in float64 first.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import cold
import machine
import report
import torch
from cold import Rotation
from layers import DEPTHWISE, Layer
from op_cases import CASES, MODES, OPS, OpCase, Work, disagreement
from op_data import Setting
from points import DTYPES
from progress import Progress
from timing import Timing, interleave


@dataclasses.dataclass
class Row:
    """One layer in one mode; without numbers where something is in the way."""

    layer: str
    mode: str
    dtype: str
    layout: str
    ms: float = 0.0
    gb_per_s: float = 0.0
    percent_of_copy: float = 0.0
    stock_ratio: float | None = None  # the faster contender from stock PyTorch over ours
    disagreement: str = ""
    missing: str = ""  # why it was not run


def measure(layer: Layer, mode: str, dtype: str, layout: str, options: argparse.Namespace) -> Row:
    """Verify and time one layer in one mode."""
    case, setting = CASES[mode], Setting(options.batch, dtype, options.device, layout)
    row = Row(layer.name, mode, dtype, layout)
    if isinstance(case, OpCase) and not has_kernel(case.op, options.device):
        return dataclasses.replace(row, missing=f"no kernel for {options.device}")
    work = case.work(layer, setting)
    wrong = disagreement(work.ours()(), work.exact(), work, dtype)
    if wrong:
        return dataclasses.replace(row, disagreement=wrong)
    in_x, in_y = case.traffic
    elements = options.batch * (in_x * layer.input_elements + in_y * layer.output_elements)
    size = elements * DTYPES[dtype].itemsize
    timings, copied = time_work(work, size, options)
    return with_numbers(row, timings, size, copied)


def has_kernel(op: str, device: str) -> bool:
    """Return whether the op runs there by our own code."""
    key = "CUDA" if device.startswith("cuda") else "CPU"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"mobilenet_ext::{op}", key))


def time_work(work: Work, size: int, options: argparse.Namespace) -> tuple[dict[str, Timing], int]:
    """Time ours, stock and a copy; return also the bytes that the copy moves."""
    on_gpu = options.device.startswith("cuda")
    sets = range(cold.sets_needed(size, options.device))
    copied = max(size, cold.COPY_BYTES if on_gpu else 2)
    source = torch.zeros(copied // 2, dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    makes = {"ours": work.ours, **work.stock}
    runs = {name: Rotation([make() for _ in sets]) for name, make in makes.items()}
    timings = interleave(
        {**runs, "copy": lambda: target.copy_(source)},
        rounds=options.rounds,
        min_time=options.min_time,
        synchronize=torch.cuda.synchronize if on_gpu else None,
        clock=cold.event_clock if on_gpu else None,
        warm_time=min(0.1, options.min_time / 2),
    )
    return timings, copied


def with_numbers(row: Row, timings: dict[str, Timing], size: int, copied: int) -> Row:
    """Turn the timings of one layer into a row; `size` is the least traffic in bytes."""
    best = timings["ours"]
    stock = [timings[name].ratio_to(best) for name in timings if name.startswith("stock")]
    return dataclasses.replace(
        row,
        ms=best.median,
        gb_per_s=size / best.median / 1e6,
        percent_of_copy=100 * timings["copy"].ratio_to(best) * size / copied,
        stock_ratio=min(stock) if stock else None,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    layouts = ("channels_last", "contiguous")
    parser.add_argument("--layout", nargs="+", choices=layouts, default=["channels_last"])
    parser.add_argument("--device", default="cpu")
    modes = [*CASES, "ops"]
    parser.add_argument("--mode", nargs="+", choices=modes, default=list(MODES), metavar="MODE")
    names = [layer.name for layer in DEPTHWISE]
    parser.add_argument("--layers", nargs="+", choices=names, default=names, metavar="H/S/C")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--min-time", type=float, default=0.2, help="seconds of each contender")
    parser.add_argument("--json", type=pathlib.Path, metavar="PATH", help="rewritten row by row")
    options = parser.parse_args(arguments)
    if "ops" in options.mode:
        options.mode = [mode for mode in CASES if mode in options.mode or mode in OPS]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 when a value was wrong or something broke."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    description = machine.describe(options.device)
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    points = [
        (layer, mode, dtype, layout)
        for layout in options.layout
        for dtype in options.dtype
        for mode in options.mode
        for layer in DEPTHWISE
        if layer.name in options.layers
    ]
    with Progress("depthwise layers", len(points)) as progress:
        for layer, mode, dtype, layout in points:
            try:
                rows.append(measure(layer, mode, dtype, layout, options))
            except RuntimeError as error:  # one layer that breaks is not the end of the others
                cause = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                rows.append(Row(layer.name, mode, dtype, layout, disagreement=cause))
            progress.step(layer.name)
            if options.json:
                content = [dataclasses.asdict(row) for row in rows]
                report.write_json(options.json, content, description, settings)
    show(rows)
    if options.json:
        print(f"wrote {options.json}")
    return 1 if any(row.disagreement for row in rows) else 0


def show(rows: list[Row]) -> None:
    """Print the table."""
    print(
        f"{'layer':<10}  {'mode':<24}  {'dtype':<8}  {'layout':<13}  {'ms':>8}  {'GB/s':>6}  "
        f"{'% copy':>6}  {'x stock':>7}"
    )
    for row in rows:
        ratio = "-" if row.stock_ratio is None else f"{row.stock_ratio:.2f}"
        numbers = f"{row.ms:8.3f}  {row.gb_per_s:6.1f}  {row.percent_of_copy:6.0f}  {ratio:>7}"
        text = row.missing or row.disagreement or numbers
        print(f"{row.layer:<10}  {row.mode:<24}  {row.dtype:<8}  {row.layout:<13}  {text}")


if __name__ == "__main__":
    sys.exit(main())
