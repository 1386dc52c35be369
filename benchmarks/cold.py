"""GPU time of a kernel that finds none of its data in the L2 cache.

A call takes its tensors from the next of several sets, which together exceed the cache; results
are kept until their set comes round again, so that they are written to other memory each time.
Time is taken by CUDA events around many calls, which wait behind a kernel that sleeps until all of
them are in the queue: launching costs the kernels nothing then.
"""

import math
from collections.abc import Callable

import torch

Call = Callable[[], object]

QUEUED_CALLS = 40  # at once; the queue holds about a thousand kernels
LAUNCH_SECONDS = 100e-6  # of one call, generously
CYCLES_PER_SECOND = 2e9
COPY_BYTES = 2**30  # read and written by the copy that gives the bandwidth


def sets_needed(size: int, device: str) -> int:
    """Return how many sets of `size` bytes a rotation takes; one on a CPU."""
    if not device.startswith("cuda"):
        return 1
    cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 * 2**20)
    return max(2, 1 + math.ceil(2 * cache / size))


class Rotation:
    """Takes the next call each time, and keeps its result until its turn comes again."""

    def __init__(self, calls: list[Call]) -> None:
        """Start with the first."""
        self._calls = calls
        self._results: list[object] = [None] * len(calls)
        self._next = 0

    def __call__(self) -> object:
        """Run one call."""
        at, self._next = self._next, (self._next + 1) % len(self._calls)
        self._results[at] = result = self._calls[at]()
        return result


def event_clock(run: Call, calls: int) -> float:
    """Return the mean milliseconds that one call keeps the GPU busy."""
    total, left = 0.0, calls
    while left > 0:
        batch = min(left, QUEUED_CALLS)
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(int(batch * LAUNCH_SECONDS * CYCLES_PER_SECOND))
        start.record()
        for _ in range(batch):
            run()
        end.record()
        end.synchronize()
        total += start.elapsed_time(end)
        left -= batch
    return total / calls
