"""Weights cast together for autocast: the same values and gradients as one by one."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mobilenet_ext import FusedMobileNet
from mobilenet_ext.casts import CastTogether, autocast_together


@pytest.fixture(autouse=True)
def under_autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


def weights() -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes = ((3, 1, 3, 3), (5, 3, 1, 1), (7, 5, 1, 1))
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def is_together(casts: list[Tensor]) -> bool:
    return len({x.grad_fn for x in casts}) == 1 and casts[0].grad_fn is not None


def test_values_and_gradients_are_those_of_casts_one_by_one() -> None:
    ours = weights()
    casts = autocast_together(ours)
    assert is_together(casts)
    for cast, weight in zip(casts, ours, strict=True):
        assert torch.equal(cast, weight.to(torch.bfloat16))
        assert cast.is_contiguous()
    first, _, last = casts
    (first * first).sum().add((last * 3).sum()).backward()
    assert ours[0].grad is not None
    assert torch.equal(ours[0].grad, (2 * first).float())
    assert ours[1].grad is None
    assert ours[2].grad is not None
    assert ours[2].grad.dtype == torch.float32
    assert torch.equal(ours[2].grad, torch.full_like(ours[2], 3.0))


def test_gradients_of_gradients() -> None:
    (weight, *_) = ours = weights()
    cast = CastTogether.apply(torch.float64, *ours)[0]
    (grad,) = torch.autograd.grad((cast**3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), weight)
    torch.testing.assert_close(second, 6 * weight.detach())


def test_frozen_weights_stay_without_gradients() -> None:
    ours = weights()
    ours[1].requires_grad_(requires_grad=False)
    casts = autocast_together(ours)
    assert [x.requires_grad for x in casts] == [True, False, True]
    assert {x.dtype for x in casts} == {torch.bfloat16}


def test_float64_stays() -> None:
    ours = [x.double() for x in weights()]
    assert all(x is y for x, y in zip(autocast_together(ours), ours, strict=True))


def nodes_of(output: Tensor, kind: str) -> int:
    """How many nodes of autograd's graph have that name."""
    assert output.grad_fn is not None
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [after for after, _ in node.next_functions if after is not None]
    return sum(node.name() == kind for node in seen)


def test_a_network_casts_the_weights_of_blocks_of_a_size_together() -> None:
    model = FusedMobileNet(alpha=0.25, num_classes=3)
    output = model(torch.randn(2, 3, 32, 32)).float().sum()
    assert nodes_of(output, "CastTogetherBackward") == 5  # maps of 16, 8, 4, 2 and 1 pixels
    output.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        storage = parameter.grad.untyped_storage()
        assert storage.nbytes() == parameter.grad.nbytes, f"{name} keeps other memory"


def test_without_autocast_nothing_is_cast() -> None:
    ours = weights()
    with torch.autocast("cpu", enabled=False):
        assert all(x is y for x, y in zip(autocast_together(ours), ours, strict=True))
