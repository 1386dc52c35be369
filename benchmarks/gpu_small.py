#!/usr/bin/env python3
"""Run every op that has a kernel on small odd shapes, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python benchmarks/gpu_small.py
    python benchmarks/gpu_small.py --device cpu        # only to see that the script is right

Set PYTORCH_NO_CUDA_MEMORY_CACHING=1: every tensor is then an allocation of its own, at whose end
memcheck stands.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from layers import Layer
from op_cases import IMAGE_OPS, OPS, VECTOR_OPS
from op_data import Data, Setting
from ops import has_kernel
from points import DTYPES

CASES = {**OPS, **VECTOR_OPS, **IMAGE_OPS}
# Channels: whole vectors, more than a block of them, and neither. Then rows of pixels: whole
# vectors, and not.
SHAPES = (
    *((layer, "channels_last") for layer in (Layer(9, 1, 12), Layer(8, 2, 16), Layer(17, 1, 72))),
    *((layer, "channels_last") for layer in (Layer(6, 2, 7), Layer(1, 1, 5))),
    *((layer, "contiguous") for layer in (Layer(8, 1, 3), Layer(16, 2, 5), Layer(9, 1, 4))),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them all; 1 when there was nothing to run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args(arguments).device
    names = [name for name, case in CASES.items() if has_kernel(case.op, device)]
    calls = 0
    for dtype in DTYPES:
        for layer, layout in SHAPES:
            data = Data(layer, Setting(2, dtype, device, layout))
            for name in names:
                getattr(torch.ops.mobilenet_ext, CASES[name].op)(*CASES[name].arguments(data))
                calls += 1
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    print(f"{calls} calls of {len({CASES[name].op for name in names})} ops on {device}", flush=True)
    return 0 if calls else 1


if __name__ == "__main__":
    sys.exit(main())
