"""FusedMobileNet in training: what it read of its layers is read again once it has changed."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from mobilenet_ext import FusedMobileNet, MobileNet, training_chain


def make_pair() -> tuple[FusedMobileNet, MobileNet]:
    torch.manual_seed(0)
    fused = FusedMobileNet(num_classes=7, alpha=0.25, dropout=0.0)
    stock = MobileNet(num_classes=7, alpha=0.25, dropout=0.0)
    stock.load_state_dict(fused.state_dict())
    return fused.double(), stock.double()


def set_eps(model: MobileNet) -> None:
    model.blocks[3].depthwise.bn.eps = 0.1


def set_momentum(model: MobileNet) -> None:
    model.blocks[3].pointwise.bn.momentum = 0.7


def average_all_batches(model: MobileNet) -> None:
    model.blocks[0].depthwise.bn.momentum = None


def set_activation(model: MobileNet) -> None:
    model.blocks[5].depthwise.activation = None


def freeze_batch_norm(model: MobileNet) -> None:
    model.blocks[2].pointwise.bn.eval()


def replace_weight(model: MobileNet) -> None:
    conv = model.blocks[4].pointwise.conv
    conv.weight = nn.Parameter(conv.weight.detach() * 2)


def replace_bn_weight(model: MobileNet) -> None:
    bn = model.blocks[4].depthwise.bn
    bn.weight = nn.Parameter(bn.weight.detach() * 3)


def replace_running_mean(model: MobileNet) -> None:
    bn = model.stem.bn
    bn.register_buffer("running_mean", torch.ones_like(bn.running_mean))


def write_in_place(model: MobileNet) -> None:
    with torch.no_grad():
        model.blocks[1].pointwise.conv.weight.mul_(2)


def add_bias(model: MobileNet) -> None:
    conv = model.blocks[4].pointwise.conv
    conv.bias = nn.Parameter(torch.arange(conv.out_channels, dtype=conv.weight.dtype))


def replace_dict_of_parameters(model: MobileNet) -> None:
    """As some wrappers do."""
    conv = model.blocks[4].pointwise.conv
    conv._parameters = dict(conv._parameters)


CHANGES = [
    set_eps,
    set_momentum,
    average_all_batches,
    set_activation,
    freeze_batch_norm,
    replace_weight,
    replace_bn_weight,
    replace_running_mean,
    write_in_place,
    add_bias,
    replace_dict_of_parameters,
]


def make_images(size: int = 32) -> Tensor:
    return torch.randn(4, 3, size, size, dtype=torch.float64)


def step(model: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = model(x)
    model.zero_grad()
    output.sin().sum().backward()
    return output


def assert_equal_models(actual: nn.Module, expected: nn.Module) -> None:
    """Parameters and buffers, and the gradients."""
    tensors = zip(actual.state_dict().items(), expected.state_dict().values(), strict=True)
    for (name, x), y in tensors:
        torch.testing.assert_close(x, y, msg=f"{name}: {{}}".format)
    for x, y in zip(actual.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change: Callable[[MobileNet], None]) -> None:
    """A step, the change and two steps, against the stock network."""
    fused, stock = make_pair()
    x = make_images()
    for model in (fused, stock):
        step(model, x)
        change(model)
        step(model, x)
    torch.testing.assert_close(step(fused, x), step(stock, x))
    assert_equal_models(fused, stock)


def test_another_dtype() -> None:
    fused, stock = make_pair()
    fused.float()
    x = make_images()
    step(fused, x.float())
    fused.double()
    stock.load_state_dict(fused.state_dict())
    torch.testing.assert_close(step(fused, x), step(stock, x))
    assert_equal_models(fused, stock)


def test_another_size() -> None:
    fused, stock = make_pair()
    for size in (32, 48, 33, 32):
        x = make_images(size)
        torch.testing.assert_close(step(fused, x), step(stock, x))


def test_a_copy_reads_its_own_layers() -> None:
    fused, _ = make_pair()
    x = make_images()
    expected = step(fused, x).detach()
    twin = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    torch.testing.assert_close(step(twin, x), expected)


def test_batches_are_counted_once_each() -> None:
    fused, _ = make_pair()
    for _ in range(3):
        step(fused, make_images())
    counters = [b for name, b in fused.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(counters) == 27
    assert all(int(counter) == 3 for counter in counters)


def test_a_weight_in_a_replaced_dict() -> None:
    fused, stock = make_pair()
    x = make_images()
    for model in (fused, stock):
        for change in (replace_dict_of_parameters, replace_weight):
            step(model, x)
            change(model)
    torch.testing.assert_close(step(fused, x), step(stock, x))
    assert_equal_models(fused, stock)


def test_replaced_tensors_are_let_go() -> None:
    fused, stock = make_pair()
    step(fused, make_images())
    weight = weakref.ref(fused.blocks[4].pointwise.conv.weight)
    mean = weakref.ref(fused.stem.bn.running_mean)
    fused.load_state_dict(stock.state_dict(), assign=True)
    assert weight() is None
    assert mean() is None


def test_lent_tensors_are_let_go() -> None:
    fused, _ = make_pair()
    x = make_images()
    step(fused, x)
    lent = {name: p.detach() * 2 for name, p in fused.named_parameters()}
    torch.func.functional_call(fused, lent, (x,))
    references = [weakref.ref(tensor) for tensor in lent.values()]
    lent.clear()
    assert not any(reference() is not None for reference in references)


def test_threads_share_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's batches, of another size, run while a batch is being counted."""
    fused = FusedMobileNet(num_classes=7, alpha=0.25, dropout=0.0, padding="same")
    x, other = make_images().float(), make_images(35).float()
    with torch.no_grad():
        expected = [fused(x), fused(x)][1]
        count = training_chain.nn.count

        def interrupted(counters: list[Tensor]) -> None:
            monkeypatch.setattr(training_chain.nn, "count", count)
            with ThreadPoolExecutor(1) as thread:
                thread.submit(fused, other).result()
            count(counters)

        monkeypatch.setattr(training_chain.nn, "count", interrupted)
        torch.testing.assert_close(fused(x), expected)
