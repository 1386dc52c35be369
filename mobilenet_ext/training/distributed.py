"""One process or several, started by torchrun: who is who, and sums over all of them."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..dispatch import has_device
from .errors import TrainingError


@dataclass(frozen=True)
class World:
    """The processes that train together, and this one among them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Return the sums over all processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def sum_tensor(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, on the CPU."""
        if self.size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values.cpu()

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process go through the block before the others do."""
        if self.size > 1 and not self.is_first:
            dist.barrier()
        try:
            yield
        finally:
            if self.size > 1 and self.is_first:
                dist.barrier()

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the running statistics of the first."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


def default_device() -> str:
    """Return "cuda" where torch sees a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def world(device: str | None = None) -> Iterator[World]:
    """Yield the world that torchrun's variables describe; without them one process.

    Processes talk through NCCL on GPUs, a GPU each, and through gloo elsewhere.

    Raises:
        TrainingError: There is no such device, or no torch.distributed.
    """
    name = device or default_device()
    if not has_device(name):
        raise TrainingError(f"device must be one that torch has here, got {name!r}")
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        yield World(0, 1, torch.device(name))
        return
    if not dist.is_available():
        raise TrainingError("torchrun needs a torch that was built with torch.distributed")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(name)
    dist.init_process_group("nccl" if name.startswith("cuda") else "gloo")
    try:
        yield World(rank, size, torch.device(name))
        # torchrun stops all processes once one fails, even while it ends: let the others write.
        dist.barrier()
    finally:
        dist.destroy_process_group()
