"""The stem as a product of patches: before the blocks of a run, and by itself as on a GPU.

Values against float64, gradients against stock PyTorch.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import case_named, make_tensor
from implementations import on_gpu
from models import images, make_pair, named_gradients
from oracle import assert_values
from test_chain import choose, make_network, over_modes, over_ways
from test_functional import check_gradients
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mobilenet_ext import FusedMobileNet, MobileNet, stem
from mobilenet_ext.chain import make_run, run_chain
from mobilenet_ext.geometry import Conv
from mobilenet_ext.stem import ImageConv

over_stems = pytest.mark.parametrize("devices", [set(), {"cpu"}], ids=["op", "patches"])


@pytest.mark.parametrize("name", ["stride_2_keras_odd_map", "kernel_5_stride_2"])
def test_gradients_of_the_product(name: str) -> None:
    case = replace(case_named(name), channels=3, dilation=1)
    x = make_tensor(case.shape, "channels_last", torch.float64)
    weight = torch.randn(4, 3, case.kernel, case.kernel, dtype=torch.float64, requires_grad=True)
    geometry = Conv(case.stride, *case.padding, 1)

    def product(weight: Tensor) -> Tensor:
        return stem.PatchProduct.apply(x, weight, geometry)

    expected = F.conv2d(F.pad(x, geometry.padding), weight, stride=case.stride)
    actual = product(weight)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected)
    assert gradcheck(product, (weight,))
    assert gradgradcheck(product, (weight,))


CONV = Conv(2, 0, 1, 0, 1, 1)


def convolved(image: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.pad(image.double(), CONV.padding), weight.double(), stride=2)


@over_ways
@over_modes
def test_a_stem_before_the_blocks(
    modes: tuple[bool, ...], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(way, monkeypatch)
    network = make_network(modes)
    image, weight = make_tensor((3, 3, 18, 13)), make_tensor((9, 3, 3, 3))
    check_gradients(
        lambda: (
            run_chain(ImageConv(image, weight, CONV), make_run(network.links(), statistics=False))[
                0
            ].tensor
        ),
        lambda: network.exact(convolved(image, weight)),
        [weight, *network.tensors],
        "channels_last",
    )


@over_modes
def test_its_moments(modes: tuple[bool, ...]) -> None:
    network = make_network(modes)
    image, weight = make_tensor((3, 3, 18, 13)), make_tensor((9, 3, 3, 3))
    run = make_run(network.links(), statistics=False)
    moments = run_chain(ImageConv(image, weight, CONV), run)[1][0].input_bn
    if not modes[0]:
        assert moments == (None, None)
        return
    raw = convolved(image, weight)
    assert_values(moments.mean, raw.mean((0, 2, 3)), torch.float32, scale=50.0)
    assert_values(moments.unbiased_var, raw.var((0, 2, 3)), torch.float32, scale=2500.0)


@pytest.mark.parametrize("needed", ["stem", "depthwise", "bias"])
@over_modes
def test_part_of_the_gradients(modes: tuple[bool, ...], needed: str) -> None:
    """A frozen stem, or nothing but the stem."""
    network = make_network(modes)
    image, weight = make_tensor((3, 3, 18, 13)), make_tensor((9, 3, 3, 3))
    tensors = [weight, *network.tensors]
    wanted = {"stem": weight, "depthwise": network.weights[0][0], "bias": network.tensors[3]}

    def output() -> Tensor:
        run = make_run(network.links(), statistics=False)
        return run_chain(ImageConv(image, weight, CONV), run)[0].tensor

    for tensor in tensors:
        tensor.requires_grad_()
    every = output()
    grad = torch.randn_like(every)
    expected = torch.autograd.grad(every, wanted[needed], grad)
    for tensor in tensors:
        tensor.requires_grad_(tensor is wanted[needed])
    actual = torch.autograd.grad(output(), wanted[needed], grad)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["one_op", "split"])
@pytest.mark.parametrize("modes", [(True,) * 4, (False,) * 4], ids=str)
def test_by_differences(modes: tuple[bool, ...], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """First and second derivatives."""
    choose(way, monkeypatch)
    network = make_network(modes, torch.float64, activation=None)
    image = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    weight = torch.randn(9, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    depthwise = network.weights[0][0].clone().requires_grad_()

    def call(weight: Tensor, depthwise: Tensor) -> Tensor:
        first, *rest = network.links()
        links = [first._replace(depthwise_weight=depthwise), *rest]
        return run_chain(ImageConv(image, weight, CONV), make_run(links, False))[0].tensor

    assert gradcheck(call, (weight, depthwise), fast_mode=True)
    assert gradgradcheck(call, (weight, depthwise), fast_mode=True)


def test_changes_between_forward_and_backward_are_noticed() -> None:
    network = make_network((True,) * 6)
    for changed in ("image", "weight"):
        image, weight = make_tensor((3, 3, 18, 13)), torch.randn(9, 3, 3, 3, requires_grad=True)
        run = make_run(network.links(), statistics=False)
        output = run_chain(ImageConv(image, weight, CONV), run)[0].tensor
        with torch.no_grad():
            (image if changed == "image" else weight).zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_an_image_behind_a_frozen_stem_may_change() -> None:
    network = make_network((True,) * 6)
    image, weight = make_tensor((3, 3, 18, 13)), torch.randn(9, 3, 3, 3)
    depthwise = network.weights[0][0].requires_grad_()
    run = make_run(network.links(), statistics=False)
    output = run_chain(ImageConv(image, weight, CONV), run)[0].tensor
    (expected,) = torch.autograd.grad(output.sum(), depthwise, retain_graph=True)
    image.zero_(), weight.zero_()
    (actual,) = torch.autograd.grad(output.sum(), depthwise)
    assert torch.equal(actual, expected)


def test_maps_of_an_image_of_one_channel_are_channels_last() -> None:
    """It is dense in both ways itself."""
    torch.manual_seed(0)
    stock = MobileNet(7, 0.25, in_channels=1).double().train()
    fused = FusedMobileNet(7, 0.25, in_channels=1).double().train()
    fused.load_state_dict(stock.state_dict())
    x = images(4, 1, 64, 64, dtype=torch.float64)
    assert isinstance(stem.start(fused.stem, x), ImageConv)
    features = fused.forward_features(x)
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(features, stock.forward_features(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "x", [torch.zeros(4, 3, 64, 64, dtype=torch.float64), torch.zeros(4, 3, 64, 0)], ids=str
)
def test_a_batch_that_fails_is_not_counted(x: Tensor) -> None:
    model = FusedMobileNet(7, 0.25)
    with pytest.raises((RuntimeError, ValueError)):
        model(x)
    assert model.stem.bn.num_batches_tracked == 0


def test_a_network_trains_without_torchs_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, fused = make_pair(torch.float64)
    calls: list[bool] = []
    monkeypatch.setattr(ImageConv, "convolve", lambda *_: calls.append(True))
    monkeypatch.setattr(stem, "_by_torch", lambda *_: calls.append(True))
    check_gradient(fused, stock, images(4, 3, 32, 32, dtype=torch.float64), 1e-9)
    assert not calls


def count_patches(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that grows with every call."""
    ran: list[bool] = []
    patches = stem._patches

    def counted(*args: Any) -> Tensor:
        ran.append(True)
        return patches(*args)

    monkeypatch.setattr(stem, "_patches", counted)
    return ran


def check_gradient(fused: FusedMobileNet, stock: MobileNet, x: Tensor, tolerance: float) -> None:
    """Of the stem's weight, `stock` in float64 on the CPU."""
    stock.double().train()(x.double().cpu()).square().mean().backward()
    fused.train()(x).square().mean().backward()
    expected = named_gradients(stock)["stem.conv.weight"]
    actual = named_gradients(fused)["stem.conv.weight"].double().cpu()
    assert (actual - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("ours", ["training", "frozen"])
def test_a_network_with_patches(ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with the ops of the CPU."""
    monkeypatch.setattr(stem, "DEVICES_WITH_PATCHES", {"cpu"})
    stock, fused = make_pair(torch.float64)
    x = images(4, 3, 32, 32, dtype=torch.float64)
    ran = count_patches(monkeypatch)
    if ours == "training":
        check_gradient(fused, stock, x, 1e-9)
    else:
        stock.eval(), fused.eval()
        torch.testing.assert_close(fused.freeze()(x), stock(x).detach(), rtol=1e-9, atol=1e-9)
    assert ran


@over_stems
def test_an_image_that_needs_a_gradient_gets_one(
    devices: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stem, "DEVICES_WITH_PATCHES", devices)
    stock, fused = make_pair(torch.float64)
    x = images(4, 3, 32, 32, dtype=torch.float64)
    grads = []
    for model in (stock, fused):
        image = x.clone().requires_grad_()
        model.train()(image).square().mean().backward()
        grads.append(image.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-9)


@over_stems
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 5), "padding": (1, 2), "stride": 2},
        {"kernel_size": 3, "stride": (2, 1)},
        {"kernel_size": 3, "stride": 2, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "stride": 2, "dilation": 2},
        {"kernel_size": 3, "stride": 2, "bias": True},
    ],
    ids=str,
)
def test_a_replaced_convolution_runs_as_it_is(
    options: dict[str, Any], devices: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the layer says of it."""
    monkeypatch.setattr(stem, "DEVICES_WITH_PATCHES", devices)
    stock, fused = make_pair(torch.float64)
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 8, **({"bias": False} | options), dtype=torch.float64)
    for model in (stock, fused):
        model.stem.conv = conv
    x = images(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(fused.train()(x), stock.train()(x), rtol=1e-6, atol=1e-6)


def test_many_channels_are_for_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stem, "DEVICES_WITH_PATCHES", {"cpu"})
    device = torch.device("cpu")
    assert stem.has_patches(device, 3, 7)
    assert not stem.has_patches(device, 3, 8)


def test_the_gradient_keeps_its_precision_under_autocast() -> None:
    """Where a forward without autocast is followed by a backward with it."""
    x = make_tensor((2, 3, 9, 8), "channels_last", torch.float32)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    output = stem.PatchProduct.apply(x, weight, Conv(2, 0, 1, 0, 1, 1))
    (expected,) = torch.autograd.grad(output.sum(), weight, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (actual,) = torch.autograd.grad(output.sum(), weight)
    assert torch.equal(actual, expected)


@on_gpu
def test_the_stem_on_a_gpu_is_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, fused = make_pair()
    ran = count_patches(monkeypatch)
    check_gradient(fused.cuda(), stock, images(4, 3, 64, 64).cuda(), 1e-3)
    assert ran
