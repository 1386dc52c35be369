#!/usr/bin/env python3
"""Show where the GPU's time goes in one contender: its kernels, longest first.

    python benchmarks/gpu_profile.py                                    # ours, training, bfloat16
    python benchmarks/gpu_profile.py --mode inference --batch 1 --dtype float16
    python benchmarks/gpu_profile.py --contender compile_max_autotune

Time between kernels, when the GPU waits for the CPU, is the difference between the wall clock and
the sum.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import contenders
import graphs  # noqa: F401  (enters CUDA graphs as contenders)
import torch
from contenders import OURS
from latency import prepare_gpu
from points import DTYPES, Point
from problem import make_problem
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

CALLS = 5
NAME = 110  # characters of a kernel's name


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contender", default=OURS)
    parser.add_argument("--mode", choices=["inference", "training"], default="training")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rows", type=int, default=40, help="kernels to show (default 40)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 where there is no GPU."""
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("gpu_profile: torch sees no GPU", file=sys.stderr)
        return 2
    size = (options.mode, options.alpha, options.resolution, options.batch)
    point = Point(*size, threads=1, dtype=options.dtype, device="cuda")
    table = contenders.TRAINING if options.mode == "training" else contenders.INFERENCE
    problem = make_problem(point)
    prepare_gpu()
    run = table[options.contender](problem).run
    with contenders.mode_of(point):
        for _ in range(CALLS):
            run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            run()
        torch.cuda.synchronize()
        wall = 1e6 * (time.perf_counter() - start) / CALLS
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(CALLS):
                run()
            torch.cuda.synchronize()
    events = profiler.key_averages()
    kernels = [e for e in events if e.device_type == DeviceType.CUDA]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in kernels) / CALLS
    launches = sum(event.count for event in kernels) / CALLS
    print(f"{options.contender}, {point.label()}: wall {wall:.0f} µs without the profiler;")
    print(f"{busy:.0f} µs in {launches:.0f} kernels of a call\n\n    µs  share  launches  kernel")
    for event in kernels[: options.rows]:
        own = event.self_device_time_total / CALLS
        count = event.count / CALLS
        print(f"{own:6.0f}  {100 * own / busy:4.1f}%  {count:8.0f}  {event.key[:NAME]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
