"""A FusedMobileNet in use: training runs, mixed precision, copies, hooks, FLOP counts."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import images, make_pair, named_gradients
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mobilenet_ext import FusedMobileNet, MobileNet
from mobilenet_ext import nn as fused_layers


def train(model: nn.Module, steps: int, dtype: torch.dtype) -> list[float]:
    """Memorises a batch of noise with labels; returns the loss of each step."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(16, 3, 48, 48, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(7, (16,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-4, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_twenty_steps_of_training(dtype: torch.dtype, tolerance: float) -> None:
    """Losses follow the stock network's from the same seed, dropout included, and fall.

    With shifts of 1 most activations are away from their kinks. Without, a narrow network on small
    maps is chaotic: two stock networks that differ by 1e-14 have parted after ten steps.
    """
    losses = []
    for model in make_pair(dropout=0.1):
        torch.manual_seed(7)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.ones_(module.bias)
        losses.append(train(model.to(dtype), 20, dtype))
    torch.testing.assert_close(losses[1], losses[0], rtol=tolerance, atol=tolerance)
    assert losses[1][-1] < 0.2 * losses[1][0]


def test_training_is_reproducible_to_the_bit() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        model = FusedMobileNet(7, 0.25)
        losses = train(model, 3, torch.float32)
        runs.append((losses, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    for name, value in runs[0][1].items():
        assert torch.equal(value, runs[1][1][name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_networks(dtype: torch.dtype) -> None:
    """Everything cast, BatchNorm too: as close to float64 as the stock network is."""
    stock, fused = (model.eval() for model in make_pair(dtype))
    x = images(2, 3, 64, 64).to(dtype)
    exact = copy.deepcopy(stock).double()(x.double())
    with torch.no_grad():
        expected, actual = stock(x), fused(x)
    recorded = fused(x)
    assert actual.dtype == recorded.dtype == dtype
    allowed = 2 * (expected.double() - exact).abs().max() + exact.abs().max() * 2**-8
    assert (actual.double() - exact).abs().max() <= allowed
    assert (recorded.double() - exact).abs().max() <= allowed

    for model in (stock, fused):
        model.train()
        F.cross_entropy(
            model(images(8, 3, 64, 64).to(dtype)).float(), torch.arange(8) % 7
        ).backward()
    gradients = named_gradients(fused)
    assert gradients.keys() == named_gradients(stock).keys()
    assert all(g.isfinite().all() and g.dtype == dtype for g in gradients.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_frozen_network_is_cast(dtype: torch.dtype) -> None:
    """From float64 too: as close to it as the stock network that is cast."""
    stock, fused = (model.eval() for model in make_pair(torch.float64))
    x = images(2, 3, 64, 64).to(dtype)
    exact = stock(x.double())
    expected, actual = stock.to(dtype)(x), fused.freeze().to(dtype)(x)
    assert actual.dtype == dtype
    allowed = 2 * (expected.double() - exact).abs().max() + exact.abs().max() * 2**-8
    assert (actual.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_autocast(training: bool) -> None:
    """Convolutions in bfloat16, parameters, gradients and statistics in float32."""
    stock, fused = (model.train(training) for model in make_pair())
    x = images(8, 3, 64, 64)
    exact = copy.deepcopy(stock).double()(x.double()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = stock(x), fused(x)
        with torch.no_grad():
            copied = copy.deepcopy(fused)(x)
    assert actual.dtype == expected.dtype == copied.dtype == torch.bfloat16
    error = (expected.double() - exact).abs().max()
    assert (actual.double() - exact).abs().max() <= 2 * error + 0.05 * exact.abs().max()
    actual.float().square().sum().backward()
    assert len(named_gradients(fused)) == len(list(fused.parameters()))
    assert all(g.dtype == torch.float32 for g in named_gradients(fused).values())
    assert fused.blocks[0].depthwise.bn.running_mean.dtype == torch.float32
    buffers, others = dict(fused.named_buffers()), dict(stock.named_buffers())
    for name in ("stem.bn.running_var", "blocks.0.depthwise.bn.running_mean"):
        torch.testing.assert_close(buffers[name], others[name], rtol=2e-2, atol=2e-2)


def test_autocast_leaves_float64_alone() -> None:
    stock, fused = make_pair(torch.float64)
    x = images(2, 3, 64, 64, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused.blocks[0](fused.stem(x)).dtype == stock.blocks[0](stock.stem(x)).dtype


def round_trip_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # noqa: S301


def round_trip_save(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, round_trip_pickle, round_trip_save])
def test_copies(duplicate: Any) -> None:
    """Of a network with a warm cache, and of a frozen one."""
    fused = make_pair()[1].eval()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        expected = fused(x)
        frozen = fused.freeze()
        assert torch.equal(duplicate(fused)(x), expected)
        assert torch.equal(duplicate(frozen)(x), frozen(x))
    other = duplicate(fused).train()
    other(images(2, 3, 64, 64)).sum().backward()
    assert not named_gradients(fused)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "name", ["", "stem", "blocks.3", "blocks.3.depthwise", "blocks.3.depthwise.conv",
             "blocks.12.pointwise.bn", "classifier"]
)  # fmt: skip
def test_hooks_fire(name: str, training: bool) -> None:
    """Forward hooks, with the values of the stock network, wherever they are."""
    seen: list[Tensor] = []
    stock, fused = (model.train(training) for model in make_pair(torch.float64))
    x = images(2, 3, 64, 64, dtype=torch.float64)
    for model in (stock, fused):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output: seen.append(output.detach())
        )
        with torch.set_grad_enabled(training):
            model(x)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-8, atol=1e-8)


def test_backward_hooks_and_parameter_hooks_fire() -> None:
    _, fused = make_pair()
    seen = []
    fused.blocks[5].register_full_backward_hook(lambda *_: seen.append("block"))
    fused.blocks[7].depthwise.conv.weight.register_hook(lambda grad: seen.append("weight"))
    fused.blocks[1].pointwise.bn.bias.register_post_accumulate_grad_hook(
        lambda parameter: seen.append("bias")
    )
    fused(images(2, 3, 64, 64)).sum().backward()
    assert sorted(seen) == ["bias", "block", "weight"]


def test_weight_norm_takes_part() -> None:
    """A parametrised layer computes its weight when asked: the fused path must ask."""
    from torch.nn.utils.parametrizations import weight_norm

    stock, fused = make_pair(torch.float64)
    for model in (stock, fused):
        weight_norm(model.blocks[2].depthwise.conv)
        with torch.no_grad():
            model.blocks[2].depthwise.conv.parametrizations.weight.original0.mul_(3)
    x = images(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(fused(x), stock(x), rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), stock.eval()(x), rtol=1e-8, atol=1e-8)


def count_flops(model: nn.Module, training: bool) -> int:
    x = images(2, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output = model.train(training)(x)
        if training:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_flops_are_counted_as_for_the_stock_network(training: bool) -> None:
    """Forward alike; backward twice that (torch overcounts it for stock depthwise layers)."""
    stock, fused = make_pair()
    forward = count_flops(stock, training=False)
    expected = 3 * forward if training else forward
    assert count_flops(fused, training) == pytest.approx(expected, rel=0.03)


def test_dropout_and_train_mode() -> None:
    """Dropout is active in training only, and draws as the stock network's does."""
    stock, fused = make_pair(torch.float64, dropout=0.5)
    x = images(4, 3, 64, 64, dtype=torch.float64)
    outputs = []
    for model in (stock, fused, fused):
        torch.manual_seed(11)
        outputs.append(model(x))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-8, atol=1e-8)
    assert torch.equal(outputs[2], outputs[1])
    with torch.no_grad():
        assert torch.equal(fused.eval()(x), fused(x))


def replica_of(model: nn.Module) -> nn.Module:
    """What nn.DataParallel runs on each GPU: weights are attributes there, not parameters."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in copies.items():
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else copies[child]
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.clone())
    return copies[model]


@pytest.mark.parametrize("training", [True, False])
def test_replicas_of_data_parallel(training: bool) -> None:
    model = FusedMobileNet(5, alpha=0.25, dropout=0.0).train(training)
    expected = FusedMobileNet(5, alpha=0.25, dropout=0.0).train(training)
    expected.load_state_dict(model.state_dict())
    x = torch.randn(3, 3, 64, 64)
    output = replica_of(model)(x)
    torch.testing.assert_close(output, expected(x))
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_layers_beside_the_blocks_are_no_blocks() -> None:
    """Nor is a block that stands in two places only one."""

    class WithHead(FusedMobileNet):
        def __init__(self) -> None:
            super().__init__(5, alpha=0.25, dropout=0.0)
            self.blocks[8] = self.blocks[7]
            self.head = fused_layers.ConvBNReLU(3, 8, 3)

        def forward(self, input: Tensor) -> Tensor:
            logits = super().forward(input)
            assert isinstance(logits, Tensor)
            return logits + self.head(input).mean()

    model = WithHead()
    stock = MobileNet(5, alpha=0.25, dropout=0.0)
    stock.blocks[8] = stock.blocks[7]
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    stock.load_state_dict(weights)
    x = torch.randn(3, 3, 64, 64)
    expected = stock(x) + copy.deepcopy(model.head)(x).mean()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
