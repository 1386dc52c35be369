"""Interleaved timing: A B C, B C A, …, so that whatever disturbs the machine disturbs everybody."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Run = Callable[[], object]
Clock = Callable[[Run, int], float]  # a run and the calls of a turn; the mean ms of a call


@dataclass
class Timing:
    """What was measured of one contender; the entries of `rounds` pair up between contenders."""

    rounds: list[float] = field(default_factory=list)  # ms per call, one entry a round
    best: float = math.inf  # ms, the fastest single call or block

    @property
    def median(self) -> float:
        """The median of the rounds in ms."""
        return statistics.median(self.rounds)

    def ratio_to(self, other: "Timing") -> float:
        """Return how many times `other` this takes: the median of the paired ratios."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def warm_up(run: Run, synchronize: Run | None, seconds: float) -> float:
    """Call `run` for `seconds` until it is warm; return the seconds of its fastest call."""
    best, end, calls = math.inf, time.perf_counter() + seconds, 0
    while calls < 2 or (time.perf_counter() < end and calls < 1000):
        start = time.perf_counter()
        run()
        if synchronize:
            synchronize()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best


def take_turn(
    run: Run, calls: int, synchronize: Run | None, clock: Clock | None = None
) -> tuple[float, float]:
    """Return the typical and the least ms of `calls` calls.

    On a CPU every call is timed and the median taken. On a GPU the queue is filled and the whole
    turn timed, so that launching overlaps with work as it does in use; or a clock of its own is
    asked.
    """
    if clock:
        mean = clock(run, calls)
        return mean, mean
    if synchronize:
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize()
        mean = (time.perf_counter() - start) / calls
        return mean * 1e3, mean * 1e3
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3, min(times) * 1e3


def interleave(
    runs: Mapping[str, Run],
    *,
    rounds: int,
    min_time: float,
    synchronize: Run | None = None,
    clock: Clock | None = None,
    warm_time: float = 0.1,
    after_round: Callable[[int], None] = lambda number: None,
) -> dict[str, Timing]:
    """Time all `runs` in turns, each for about `min_time` seconds altogether.

    The first call of a turn is not counted: it finds another contender's data in the cache. Its
    threads may go on spinning for more than a call, so that every round has an order of its own.
    Before all turns each runs for `warm_time` seconds.
    """
    order = random.Random(0)  # noqa: S311  (no secrets)
    calls = {}
    for name, run in runs.items():
        seconds = warm_up(run, synchronize, warm_time)
        calls[name] = max(1, min(10_000, round(min_time / rounds / seconds)))
    timings = {name: Timing() for name in runs}
    for number in range(rounds):
        for name, run in order.sample(list(runs.items()), len(runs)):
            run()
            typical, least = take_turn(run, calls[name], synchronize, clock)
            timings[name].rounds.append(typical)
            timings[name].best = min(timings[name].best, least)
        after_round(number)
    return timings
