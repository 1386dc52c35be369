"""What a benchmark of one point yields, as it is printed, plotted and stored."""

from dataclasses import asdict, dataclass, field

from contenders import OURS, is_ours
from points import Point


@dataclass
class Result:
    """One contender at one point. Only `status == "timed"` has numbers."""

    contender: str
    status: str  # "timed", "disagrees", "failed" or "not available"
    reason: str = ""
    build_s: float | None = None  # seconds to build, compile and verify
    median_ms: float | None = None
    best_ms: float | None = None
    ratio: float | None = None  # times ours: the median of the paired ratios
    images_per_s: float | None = None
    gflops: float | None = None  # inference: 2 x multiply-adds over the median time
    # On a GPU: what a call allocates at its peak beyond what it finds. None where a graph, which
    # keeps its memory, hides it.
    memory_mb: float | None = None
    round_ms: list[float] = field(default_factory=list)


@dataclass
class PointResult:
    """All contenders at one point."""

    point: Point
    results: list[Result]
    fma_gflops: float | None = None  # the CPU's peak on the same threads, timed in turn with them

    def timed(self) -> list[Result]:
        """Return the contenders that have numbers, fastest first."""
        timed = [result for result in self.results if result.median_ms is not None]
        return sorted(timed, key=lambda result: result.median_ms or 0.0)

    def best_peer(self) -> Result | None:
        """Return the fastest contender that is not ours."""
        peers = [result for result in self.timed() if not is_ours(result.contender)]
        return peers[0] if peers else None

    def ours(self) -> Result | None:
        """Return our own contender, if it was timed."""
        return next((result for result in self.timed() if result.contender == OURS), None)

    def verdict(self) -> str:
        """Return one sentence on how we stand against the best peer."""
        best, ours = self.best_peer(), self.ours()
        if ours is None:
            return f"{OURS} was not timed"
        if best is None or best.ratio is None:
            return "no peer was timed"
        standing = "ahead of" if best.ratio >= 1 else "BEHIND"
        return f"{OURS} is {standing} the best peer, {best.contender}: {best.ratio:.2f}x"

    def share_of_peak(self) -> float | None:
        """Return the multiply-adds of ours, at float32 inference, over the CPU's peak."""
        ours = self.ours()
        if self.point.dtype != "float32" or ours is None or ours.gflops is None:
            return None
        if self.fma_gflops is None:
            return None
        return ours.gflops / self.fma_gflops

    def as_json(self) -> dict[str, object]:
        """Return plain data for the JSON file."""
        best = self.best_peer()
        return {
            "point": asdict(self.point),
            "label": self.point.label(),
            "best_peer": best.contender if best else None,
            "best_peer_ratio": best.ratio if best else None,
            "fma_gflops": self.fma_gflops,
            "results": [asdict(result) for result in self.results],
        }
