"""The points a benchmark visits: what is run, at which size, with how many threads."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Point:
    """One configuration at which all contenders meet."""

    mode: str  # "inference" or "training"
    alpha: float
    resolution: int
    batch: int
    threads: int
    dtype: str = "float32"
    device: str = "cpu"
    num_classes: int = 1000

    def label(self) -> str:
        """Return e.g. `inference 1.0/224 batch 1, 2 threads`."""
        size = f"{self.mode} {self.alpha}/{self.resolution} batch {self.batch}"
        place = f"{self.threads} thread{'s' * (self.threads > 1)}"
        if self.device != "cpu":
            place = self.device
        return f"{size}, {place}" + (f", {self.dtype}" if self.dtype != "float32" else "")


def cross(
    mode: str,
    alphas: Sequence[float],
    resolutions: Sequence[int],
    batches: Sequence[int],
    threads: Sequence[int],
    dtypes: Sequence[str],
    device: str,
    num_classes: int,
) -> Iterator[Point]:
    """Yield every combination; threads vary last, so one model is built for neighbours."""
    for values in itertools.product(alphas, resolutions, batches, dtypes, threads):
        alpha, resolution, batch, dtype, count = values
        yield Point(mode, alpha, resolution, batch, count, dtype, device, num_classes)


def default_points(mode: str, threads: int, device: str, dtype: str) -> list[Point]:
    """Return the few points of a run without options."""
    rest = (threads, dtype, device)
    inference = [
        Point("inference", 1.0, 224, 1, *rest, 1000),
        Point("inference", 0.5, 32, 1, *rest, 10),
    ]
    training = [Point("training", 0.5, 32, 32, *rest, 10)]
    chosen = {"inference": inference, "training": training, "both": inference + training}
    return chosen[mode]


def target_grid(mode: str, cores: int, device: str, dtype: str) -> list[Point]:
    """Return the points for which the project has set itself a target (see NOTES.md)."""
    sizes = [(1.0, 224), (1.0, 128), (0.5, 224), (0.5, 32), (0.25, 128), (0.25, 32)]
    counts = [1, 2] if cores > 1 else [1]
    inference = [
        Point("inference", alpha, resolution, batch, threads, dtype, device, classes(resolution))
        for (alpha, resolution), batch, threads in itertools.product(sizes, [1, 32], counts)
    ]
    training = [
        Point("training", alpha, resolution, batch, counts[-1], dtype, device, classes(resolution))
        for alpha, resolution, batch in [(0.5, 32, 32), (1.0, 224, 16)]
    ]
    chosen = {"inference": inference, "training": training, "both": inference + training}
    return chosen[mode]


def classes(resolution: int) -> int:
    """Return the classes of the data set that has this image size: CIFAR-10's or ImageNet's."""
    return 10 if resolution < 64 else 1000
