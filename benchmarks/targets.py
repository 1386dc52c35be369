"""What the project wants of a GPU, beside what was measured. NOTES.md has the same in words."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Content = dict[str, Any]

# Kernels that have a target, for two-byte types: percent of the bandwidth of a copy, by the size of
# the layer's input map.
KERNELS = ("conv-statistics", "norm-conv-statistics", "conv-norm", "conv-backward")
KERNELS_WITH_TARGET = (*KERNELS, "scale-shift-act")
PERCENT_OF_COPY = {112: 85, 56: 85, 28: 85, 14: 80, 7: 70}
EAGER, COMPILE = "eager_channels_last", "compile_max_autotune"


@dataclass(frozen=True)
class Ratio:
    """Times that `peer` has to take of our best contender."""

    peer: str
    least: float


@dataclass(frozen=True)
class Target:
    """What one kind of point has to reach."""

    mode: str
    batch: int
    dtypes: tuple[str, ...]
    ratios: tuple[Ratio, ...] = ()
    most_ms: float | None = None
    most_memory: float | None = None  # times that of eager


MODELS = (
    Target(
        "training",
        256,
        ("float16", "bfloat16"),
        (Ratio(COMPILE, 1.4), Ratio(EAGER, 1.9)),
        most_memory=0.55,
    ),
    Target("inference", 256, ("float16",), (Ratio(COMPILE, 1.7),)),
    Target("inference", 1, ("float16", "bfloat16"), (Ratio(COMPILE, 2.0),), most_ms=0.060),
)


@dataclass(frozen=True)
class Verdict:
    """One target and what came of it."""

    what: str
    target: str
    measured: str
    met: bool | None  # None: not measured

    @property
    def word(self) -> str:
        """Return yes, no or not measured."""
        return {True: "yes", False: "**no**", None: "not measured"}[self.met]


def layout_of(row: Content) -> str:
    """Return the memory format that a row of ops.py was measured in."""
    return str(row.get("layout", "channels_last"))


def percent_wanted(row: Content) -> int | None:
    """Return the percentage of copy bandwidth that a row of ops.py has to reach, or None."""
    if row["mode"] not in KERNELS_WITH_TARGET or row["dtype"] == "float32":
        return None
    if layout_of(row) != "channels_last":
        return None
    return PERCENT_OF_COPY.get(int(row["layer"].split("/")[0]))


def reaches(row: Content) -> bool | None:
    """Return whether a row of ops.py meets its target; None without numbers or target."""
    wanted = percent_wanted(row)
    if wanted is None or not row["ms"]:
        return None
    return bool(row["percent_of_copy"] >= wanted)


def kernel_verdicts(rows: Iterable[Content]) -> list[Verdict]:
    """Return a verdict for every kernel that has a target: is it met at each layer and dtype?"""
    found = []
    rows = [row for row in rows if percent_wanted(row) is not None]
    for kernel in KERNELS_WITH_TARGET:
        mine = [row for row in rows if row["mode"] == kernel]
        reached = [reaches(row) for row in mine]
        timed = [answer for answer in reached if answer is not None]
        what = f"{kernel}, two-byte types, batch 256, share of copy bandwidth"
        measured = f"{sum(timed)} of {len(timed)} layers and types" if timed else "-"
        met = all(timed) and len(timed) == len(mine) if timed else None
        found.append(Verdict(what, "85 %, at 14×14 80 %, at 7×7 70 %", measured, met))
    return found


def model_verdicts(points: Iterable[Content]) -> list[Verdict]:
    """Return the verdicts on every target of a model, for each dtype that it is meant for."""
    by_key = {(p["point"]["mode"], p["point"]["batch"], p["point"]["dtype"]): p for p in points}
    found = []
    for target in MODELS:
        for dtype in target.dtypes:
            point = by_key.get((target.mode, target.batch, dtype))
            results = {} if point is None else {r["contender"]: r for r in point["results"]}
            label = f"{target.mode} 1.0/224 batch {target.batch}, {dtype}"
            found += verdicts_at(label, target, results)
    return found


def verdicts_at(label: str, target: Target, results: dict[str, Content]) -> list[Verdict]:
    """Return the verdicts on one target at one point."""
    ours = [r for name, r in results.items() if name.startswith("mobilenet_ext") and r["median_ms"]]
    best = min(ours, key=lambda result: result["median_ms"], default=None)
    found = []
    for ratio in target.ratios:
        peer = results.get(ratio.peer)
        value = None
        if best and peer and peer["median_ms"] and peer["ratio"] and best["ratio"]:
            value = peer["ratio"] / best["ratio"]
        found.append(at_least(f"{label}, against {ratio.peer}", value, ratio.least))
    if target.most_ms is not None:
        value = best["median_ms"] * 1e3 if best else None
        found.append(at_most(f"{label}, a forward pass", value, target.most_ms * 1e3, " µs"))
    if target.most_memory is not None:
        used = [r["memory_mb"] for r in ours if r.get("memory_mb")]
        eager = results.get(EAGER, {}).get("memory_mb")
        value = 100 * min(used) / eager if used and eager else None
        what = f"{label}, memory of a step against {EAGER}"
        found.append(at_most(what, value, 100 * target.most_memory, " %"))
    return found


def at_least(what: str, value: float | None, least: float) -> Verdict:
    """Return the verdict on a ratio."""
    measured = "-" if value is None else f"{value:.2f}×"
    return Verdict(what, f"≥ {least:g}×", measured, None if value is None else value >= least)


def at_most(what: str, value: float | None, most: float, unit: str) -> Verdict:
    """Return the verdict on a quantity."""
    measured = "-" if value is None else f"{value:.3g}{unit}"
    return Verdict(what, f"≤ {most:.3g}{unit}", measured, None if value is None else value <= most)
