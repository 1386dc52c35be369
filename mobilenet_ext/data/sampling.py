"""Which image comes when, and all other chance: a function of seed, epoch and step.

So nothing random needs to be remembered: a run can go on from any step, and any number of
processes can share the batches of one.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def seed_of(*numbers: int) -> int:
    """Return a seed below 2^63 that belongs to these numbers."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def chance(shape: tuple[int, ...], *numbers: int) -> Tensor:
    """Return float32 numbers, uniform in [0, 1), that belong to the given ones."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed_of(*numbers)))


@dataclass(frozen=True)
class Sampler:
    """The batches of an epoch, from one step on, as one of the processes sees them.

    A batch is `batch_size` images over all processes; each takes a slice of the same length. The
    remainder of the epoch, too small for BatchNorm, is left out.
    """

    seed: int
    epoch: int
    batch_size: int
    start: int = 0  # batches that are already done
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        """Refuse batches that cannot be shared."""
        if self.batch_size % self.world:
            raise ValueError(
                f"batch size {self.batch_size} cannot be shared by {self.world} processes"
            )

    def batches(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each batch and the indices of this process's images of `count`."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(count, generator=generator)
        for number in range(self.start, count // self.batch_size):
            start = number * self.batch_size
            yield number, self.mine(order[start : start + self.batch_size])

    def chance(self, number: int) -> Tensor:
        """Return [images of this process, 3], uniform in [0, 1), for batch `number`."""
        return self.mine(chance((self.batch_size, 3), self.seed, self.epoch, number))

    def mine(self, whole: Tensor) -> Tensor:
        """Return this process's slice of something that has an entry an image."""
        return whole.tensor_split(self.world)[self.rank]
