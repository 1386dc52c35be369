"""SyncBatchNorm: two processes with a part of a batch each do what one does with all of it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from models import images, make_pair, named_gradients
from torch import Tensor, nn

from mobilenet_ext import FusedMobileNet

WORLD = 2
PARTS = (3, 5)  # images of each rank: not the same
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


def batch() -> Tensor:
    torch.manual_seed(2)
    return images(sum(PARTS), 3, 64, 64, dtype=torch.float64)


def loss_of(logits: Tensor) -> Tensor:
    """A sum over images, so that the gradients of ranks add up."""
    return (logits * torch.arange(logits.shape[1]).cos()).square().sum()


def train_a_part(rank: int, folder: str) -> None:
    """One step of one rank; rank 0 writes what came out, gradients summed over the ranks."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    fused = make_pair(torch.float64)[1]
    fused.load_state_dict(torch.load(f"{folder}/start.pt", weights_only=True))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    assert type(model) is FusedMobileNet
    logits = model(batch().split(PARTS)[rank])
    loss_of(logits).backward()
    gradients = named_gradients(model)
    for gradient in gradients.values():
        dist.all_reduce(gradient)
    if rank == 0:
        result = {"logits": logits.detach(), "gradients": gradients, "state": model.state_dict()}
        torch.save(result, f"{folder}/result.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    stock = make_pair(torch.float64)[0]
    torch.save(stock.state_dict(), tmp_path / "start.pt")
    mp.spawn(train_a_part, (str(tmp_path),), nprocs=WORLD)
    result = torch.load(tmp_path / "result.pt", weights_only=True)

    logits = stock(batch())
    loss_of(logits).backward()
    options = {"rtol": 1e-7, "atol": 1e-7}
    torch.testing.assert_close(result["logits"], logits[: PARTS[0]].detach(), **options)
    expected = named_gradients(stock)
    assert len(expected) == len(list(stock.parameters()))
    for name, gradient in result["gradients"].items():
        scale = 1 + expected[name].abs().max().item()
        torch.testing.assert_close(gradient / scale, expected[name] / scale, **options, msg=name)
    torch.testing.assert_close(result["state"], dict(stock.state_dict()), **options)


def test_without_a_process_group_it_is_plain_batch_norm() -> None:
    stock, fused = make_pair(torch.float64)
    fused = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    x = batch()
    torch.testing.assert_close(fused(x), stock(x), rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), stock.eval()(x), rtol=1e-8, atol=1e-8)
