"""fuse and unfuse against the same networks unfused, ours and others'."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import images, make_pair, named_gradients, randomise
from test_model_use import replica_of
from torch import Tensor, nn

from mobilenet_ext import FusedMobileNet, MobileNet, fuse, unfuse
from mobilenet_ext.fusion import FusedBatchNorm2d, FusedDepthwiseConv2d, PassedReLU


class Block(nn.Module):
    """A residual block with its own forward, a shared ReLU and asymmetric padding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.bn1 = nn.BatchNorm2d(2 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.depthwise = nn.Conv2d(
            *(2 * channels, 2 * channels, 5),
            padding=(2, 1),
            groups=2 * channels,
            bias=False,
        )
        self.bn2 = nn.BatchNorm2d(2 * channels, momentum=None)
        self.act2 = nn.ReLU6()
        self.project = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.expand(x)))
        y = self.act2(self.bn2(self.depthwise(y)))
        y = self.bn3(self.project(y))
        return self.relu(y + nn.functional.pad(x, (-1, -1)))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(8),
        nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, 1),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def torchvision_network() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    model: nn.Module = models.mobilenet_v2(width_mult=0.25, num_classes=5, dropout=0.0)
    return model


def our_network() -> nn.Module:
    return MobileNet(5, 0.25, dropout=0.0)


NETWORKS = [network, torchvision_network, our_network]


def prepared(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A network with hostile weights, in double, and its fused copy."""
    stock = make()
    randomise_any(stock)
    stock.double()
    return stock, fuse(copy.deepcopy(stock))


def randomise_any(model: nn.Module) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [bn.momentum for bn in norms]
    if all(bn.affine for bn in norms):
        randomise(model)
    else:
        model.train()
        for _ in range(3):
            model(images(4, 3, 32, 32))
    for bn, momentum in zip(norms, momenta, strict=True):
        bn.momentum = momentum


@pytest.mark.parametrize("make", NETWORKS)
def test_inference_agrees(make: Callable[[], nn.Module]) -> None:
    stock, fused = (model.eval() for model in prepared(make))
    x = images(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), stock(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fused(x), stock(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", NETWORKS)
def test_training_agrees(make: Callable[[], nn.Module]) -> None:
    stock, fused = (model.train() for model in prepared(make))
    x = images(4, 3, 64, 64, dtype=torch.float64)
    for model in (stock, fused):
        model(x).square().sum().backward()
    theirs, ours = named_gradients(stock), named_gradients(fused)
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(fused.state_dict(), stock.state_dict(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", NETWORKS)
def test_unfuse_gives_the_stock_network_back(make: Callable[[], nn.Module]) -> None:
    stock, fused = prepared(make)
    parameters = [id(p) for p in fused.parameters()]
    fuse(fused)
    assert [type(m) for m in fused.modules()] != [type(m) for m in stock.modules()]
    fused.eval()(images(1, 3, 64, 64, dtype=torch.float64))
    unfuse(fused)
    assert [type(m) for m in fused.modules()] == [type(m) for m in stock.modules()]
    assert [id(p) for p in fused.parameters()] == parameters
    for ours, theirs in zip(fused.modules(), stock.modules(), strict=True):
        assert ours.__dict__.keys() == theirs.__dict__.keys()


def fused_kinds(model: nn.Module) -> dict[str, type[nn.Module]]:
    kinds = (FusedDepthwiseConv2d, FusedBatchNorm2d, PassedReLU)
    return {name: type(m) for name, m in model.named_modules() if isinstance(m, kinds)}


def test_what_is_fused() -> None:
    """bn1's ReLU is called twice, and bn3's input is no depthwise convolution: both stay."""
    assert fused_kinds(fuse(network())) == {
        "1": FusedBatchNorm2d,
        "2": PassedReLU,
        "3.depthwise": FusedDepthwiseConv2d,
        "3.bn2": FusedBatchNorm2d,
        "4": FusedDepthwiseConv2d,
        "5": FusedBatchNorm2d,
        "7": FusedBatchNorm2d,
    }


def test_the_kernels_run() -> None:
    model = fuse(network()).train()
    with torch.profiler.profile() as profile:
        model(images(2, 3, 32, 32))
    ran = {event.key for event in profile.key_averages()}
    assert "mobilenet_ext::depthwise_conv" in ran
    assert "mobilenet_ext::scale_shift_act" in ran


def pickled(model: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(model))  # noqa: S301
    return copied


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_are_independent(copied: Callable[[nn.Module], nn.Module]) -> None:
    stock, fused = (model.eval() for model in prepared(network))
    other = copied(fused)
    x = images(2, 3, 64, 64, dtype=torch.float64)
    for module in fused.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.zeros_(module.weight)
    torch.testing.assert_close(other(x), stock(x), rtol=1e-9, atol=1e-9)


def test_hooks_fire_and_replaced_modules_run() -> None:
    stock, fused = (model.eval() for model in prepared(network))
    x = images(2, 3, 64, 64, dtype=torch.float64)
    shapes: dict[str, list[Tensor]] = {"stock": [], "fused": []}
    for name, model in (("stock", stock), ("fused", fused)):
        seen: Any = shapes[name].append
        model.get_submodule("3.bn2").register_forward_hook(lambda m, i, o, seen=seen: seen(o))
    torch.testing.assert_close(fused(x), stock(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shapes["fused"], shapes["stock"], rtol=1e-9, atol=1e-9)
    for model in (stock, fused):
        model[5] = nn.Identity()
        model[8] = nn.LeakyReLU()
    torch.testing.assert_close(fused(x), stock(x), rtol=1e-9, atol=1e-9)
    nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    torch.testing.assert_close(fused(x), stock(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_replicas_of_data_parallel_have_their_own_weights(training: bool) -> None:
    stock, fused = (model.train(training) for model in prepared(network))
    x = images(4, 3, 64, 64, dtype=torch.float64)
    replicas = [replica_of(model) for model in (stock, fused)]
    with torch.no_grad():
        for replica in replicas:
            replica.get_submodule("5").weight.mul_(3)
            replica.get_submodule("3.bn2").bias.add_(1)
    expected, output = (replica(x) for replica in replicas)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(output, fused(x))


@pytest.mark.parametrize("wrap_first", [True, False], ids=["wrapped", "fused"])
@pytest.mark.parametrize("name", ["1", "3", "3.depthwise", "3.bn2", "3.act2", "8"])
def test_an_assigned_forward_runs(name: str, wrap_first: bool) -> None:
    """As other libraries wrap it, before or after; a parent's calls other children."""
    stock, fused = (model.eval() for model in prepared(network))
    fused = unfuse(fused) if wrap_first else fused
    for model in (stock, fused):
        module: Any = model.get_submodule(name)
        forward = module.forward
        module.forward = lambda x, forward=forward: forward(x).flip(1)
        if name == "3":
            module.forward = lambda x, block=module: block.project(block.depthwise(block.expand(x)))
    fused = fuse(fused)
    x = images(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(fused(x), stock(x), rtol=1e-9, atol=1e-9)


def test_exports_stock_ops() -> None:
    stock, fused = (model.eval() for model in prepared(network))
    x = images(2, 3, 64, 64, dtype=torch.float64)
    program = torch.export.export(fused, (x,))
    assert not [n for n in program.graph.nodes if "mobilenet_ext" in str(n.target)]
    torch.testing.assert_close(program.module()(x), stock(x), rtol=1e-9, atol=1e-9)


def test_compiles_whole() -> None:
    stock, fused = (model.eval() for model in prepared(network))
    x = images(2, 3, 64, 64, dtype=torch.float64)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), stock(x), rtol=1e-9, atol=1e-9)


def test_our_models_change_class() -> None:
    stock, fused = make_pair()
    x = images(2, 3, 64, 64)
    expected = stock.eval()(x)
    assert type(fuse(stock)) is FusedMobileNet
    torch.testing.assert_close(stock(x), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(stock(x), fused.eval()(x))
    assert type(unfuse(stock)) is MobileNet
    assert torch.equal(stock(x), expected)


def test_nothing_to_fuse_is_said() -> None:
    with pytest.warns(UserWarning, match="found no BatchNorm2d .* in Linear"):
        fuse(nn.Linear(2, 2))


class Branches(nn.Module):
    """No chains: a convolution's output is used twice, a BatchNorm is called in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.bn_a = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.bn_b = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(self.bn_a(a) + a)
        return self.bn_b(b) if self.training else b


def test_what_must_not_be_fused() -> None:
    with pytest.warns(UserWarning, match="found no"):
        assert fused_kinds(fuse(Branches())) == {}
