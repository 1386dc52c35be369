#!/usr/bin/env python3
"""Measure the inference and training latency of FusedMobileNet against its peers.

    python benchmarks/latency.py                                  # a few points, about two minutes
    python benchmarks/latency.py --alpha 0.5 1.0 --resolution 224 --batch 1 8 --threads 1 2
    python benchmarks/latency.py --mode training --alpha 0.5 --resolution 32 --batch 32
    python benchmarks/latency.py --grid --json results/mine.json  # every point that has a target

Contenders run interleaved and only after their output (training: loss, gradients and running
statistics) agreed with stock PyTorch in float64. "x ours" above 1 means that ours is faster.
"""

import argparse
import contextlib
import gc
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

# Some runtimes print their start-up notes where the table goes.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contenders
import graphs  # noqa: F401  (enters CUDA graphs as contenders)
import machine
import report
import runtimes  # noqa: F401  (enters ONNX Runtime, OpenVINO and LiteRT as contenders)
import torch
from contenders import OURS, Contender, NotAvailable, is_ours
from fma_peak import fma_peak
from points import DTYPES, Point, cross, default_points, target_grid
from problem import Problem, make_problem
from progress import Progress
from results import PointResult, Result
from timing import Run, interleave

from mobilenet_ext.summary import multiply_adds

PEAK = "FMA peak"  # runs in turn with the contenders


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; what is None was not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--alpha", type=float, nargs="+", help="width multipliers")
    add("--resolution", type=int, nargs="+", help="image sizes")
    add("--batch", type=int, nargs="+", help="batch sizes")
    add("--threads", type=int, nargs="+", help="CPU threads (default: all cores)")
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="training: autocast")
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    add("--mode", choices=["inference", "training", "both"], default="both")
    add("--peers", nargs="+", metavar="NAME", help="only these beside ours: " + peers_text())
    add("--num-classes", type=int, help="default: 10 below 64 pixels, 1000 above")
    add("--rounds", type=int, default=9, help="turns of each contender at a point (default 9)")
    add("--min-time", type=float, default=0.7, help="seconds of each contender (default 0.7)")
    add("--build-limit", type=float, default=120, help="seconds to build a contender (default 120)")
    add("--json", type=pathlib.Path, metavar="PATH", help="write the results there")
    add("--plot", type=pathlib.Path, default=pathlib.Path("latency.png"), metavar="PATH")
    add("--no-plot", action="store_true")
    add("--grid", action="store_true", help="every point for which the project has a target")
    options = parser.parse_args(arguments)
    known = set(contenders.INFERENCE) | set(contenders.TRAINING)
    unknown = [name for name in options.peers or [] if name not in known]
    if unknown:
        parser.error(f"unknown peers {unknown}; there are: {peers_text()}")
    sizes = [options.alpha, options.resolution, options.batch, options.num_classes]
    if options.grid and any(size is not None for size in [*sizes, options.threads]):
        parser.error("--grid fixes sizes and threads: leave out --alpha, --batch and the like")
    smallest = min(options.resolution or [224])
    if options.mode != "inference" and 1 in (options.batch or []) and smallest <= 32:
        parser.error("training at 32 pixels needs a --batch above 1: the last maps are 1 x 1")
    return options


def peers_text() -> str:
    """Return the names that --peers takes."""
    names = list(contenders.INFERENCE) + list(contenders.TRAINING)
    return ", ".join(dict.fromkeys(name for name in names if not is_ours(name)))


def points_of(options: argparse.Namespace) -> list[Point]:
    """Return the points that the options ask for."""
    threads = options.threads or [machine.cores()]
    if options.grid:
        place = (machine.cores(), options.device)
        return [p for dtype in options.dtype for p in target_grid(options.mode, *place, dtype)]
    given = [options.alpha, options.resolution, options.batch, options.num_classes]
    if all(value is None for value in given):
        return [
            point
            for dtype in options.dtype
            for count in threads
            for point in default_points(options.mode, count, options.device, dtype)
        ]
    points: list[Point] = []
    for mode in ["inference", "training"] if options.mode == "both" else [options.mode]:
        for resolution in options.resolution or [224]:
            batches = options.batch or [32 if mode == "training" else 1]
            count = options.num_classes or (10 if resolution < 64 else 1000)
            sizes = (options.alpha or [1.0], [resolution], batches, threads)
            points += cross(mode, *sizes, options.dtype, options.device, count)
    return points


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in the block after `seconds` (where the system has SIGALRM)."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not ready after {seconds:g} s (--build-limit)")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: compilers have been seen to take the first for a configuration that failed.
    signal.setitimer(signal.ITIMER_REAL, seconds, 2.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def prepare(name: str, problem: Problem, limit: float) -> tuple[Result, Contender | None]:
    """Build and verify one contender; the reason it cannot be timed is in the result."""
    table = contenders.TRAINING if problem.point.mode == "training" else contenders.INFERENCE
    start = time.perf_counter()
    try:
        with time_limit(limit):
            contender = table[name](problem)
            wrong = problem.disagreements(contender.check())
        seconds = time.perf_counter() - start
        memory = peak_memory(contender, problem.point)
    except NotAvailable as error:
        return Result(name, "not available", str(error)), None
    except Exception as error:  # a peer that breaks is a finding, not the end of the benchmark
        cause = (str(error).strip().splitlines() or [""])[0][:200]
        return Result(name, "failed", f"{type(error).__name__}: {cause}"), None
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return Result(name, "disagrees", wrong[0] + more, seconds), None
    return Result(name, "verified", "", seconds, memory_mb=memory), contender


def peak_memory(contender: Contender, point: Point) -> float | None:
    """Return the MB that one call allocates at its peak, on a GPU."""
    if not point.device.startswith("cuda"):
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with contenders.mode_of(point):
        contender.run()
    return (torch.cuda.max_memory_allocated() - before) / 1e6 or None


def prepare_gpu() -> None:
    """Let cuDNN search for its best kernels; float32 means float32, for everybody."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def measure(point: Point, options: argparse.Namespace) -> PointResult:
    """Build, verify and time every contender of `point`."""
    torch.set_num_threads(point.threads)
    torch._dynamo.reset()
    table = contenders.TRAINING if point.mode == "training" else contenders.INFERENCE
    asked = options.peers or [name for name in table if name not in contenders.ON_REQUEST]
    ours = [name for name in table if is_ours(name) and name not in contenders.ON_REQUEST]
    names = [name for name in table if name in ours or name in asked]
    results, ready = [], {}
    with Progress(point.label(), len(names) + options.rounds) as progress:
        problem = make_problem(point)
        if point.device.startswith("cuda"):
            torch.cuda.empty_cache()
            prepare_gpu()
        for name in names:
            result, contender = prepare(name, problem, options.build_limit)
            results.append(result)
            if contender is not None:
                ready[name] = contender
            else:
                progress.note(f"  {name}: {result.status}: {result.reason}")
            progress.step(name)
        runs: dict[str, Run] = {name: contender.run for name, contender in ready.items()}
        peak = fma_peak(point.threads) if point.device == "cpu" else None
        if peak:
            runs[PEAK] = peak
        with contenders.mode_of(point):
            timings = interleave(
                runs,
                rounds=options.rounds,
                min_time=options.min_time,
                synchronize=torch.cuda.synchronize if point.device.startswith("cuda") else None,
                after_round=lambda number: progress.step("timing"),
            )
    work = 2e-6 * point.batch * multiply_adds(point.alpha, point.resolution, point.num_classes)
    for result in results:
        if result.contender not in timings:
            continue
        timing = timings[result.contender]
        result.status, result.round_ms = "timed", [round(ms, 6) for ms in timing.rounds]
        result.median_ms, result.best_ms = timing.median, timing.best
        result.images_per_s = 1e3 * point.batch / timing.median
        if point.mode == "inference":
            result.gflops = work / timing.median
        if OURS in timings:
            result.ratio = timing.ratio_to(timings[OURS])
    gflops = 1e-6 * peak.flops / timings[PEAK].median if peak else None
    return PointResult(point, results, gflops)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 when our own contender was wrong or broken somewhere."""
    options = parse(arguments)
    points, description = points_of(options), machine.describe(options.device)
    print(f"{description['gpu'] or description['cpu']}, {description['cores']} cores", flush=True)
    settings: dict[str, object] = {"rounds": options.rounds, "min_time_s": options.min_time}
    done: list[PointResult] = []
    for point in points:
        done.append(measure(point, options))
        print("\n" + report.table(done[-1]), flush=True)
        if options.json:
            content = [point.as_json() for point in done]
            report.write_json(options.json, content, description, settings)
        gc.collect()
    if options.json:
        print(f"\nwrote {options.json}")
    if not options.no_plot and report.write_plot(options.plot, done, description):
        print(f"wrote {options.plot}")
    return 0 if all(point.ours() for point in done) else 1


if __name__ == "__main__":
    sys.exit(main())
