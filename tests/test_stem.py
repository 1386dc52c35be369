"""The stem as a product of patches: values against float64, gradients against stock PyTorch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import ConvCase, case_named, make_tensor, over_cases, over_dtypes
from implementations import Ops, on_gpu
from models import images, make_pair, named_gradients
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mobilenet_ext import FusedMobileNet, MobileNet, stem
from mobilenet_ext.geometry import Conv, patch_columns

NAMES = (
    "stride_2_keras_odd_map", "kernel_2_even", "kernel_5_stride_2", "padding_wider_than_kernel",
    "smaller_than_kernel", "stride_wider_than_kernel", "sliced", "contiguous", "one_row",
)  # fmt: skip


def call(ops: Ops, case: ConvCase, x: Tensor) -> Tensor:
    patches: Tensor = ops.image_patches(x, case.kernel, case.stride, *case.padding)
    return patches


@over_dtypes
@over_cases(NAMES)
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_patches_are_what_a_convolution_reads(
    ops: Ops, case: ConvCase, channels: int, dtype: torch.dtype
) -> None:
    case = replace(case, channels=channels, dilation=1)
    x = make_tensor(case.shape, case.layout, dtype)
    left, right, top, bottom = case.padding
    padded = F.pad(x.double(), (left, right, top, bottom))
    columns = F.unfold(padded, case.kernel, stride=case.stride)  # [N, C * taps, pixels]
    taps = columns.unflatten(1, (channels, -1)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)
    patches = call(ops, case, x)
    assert patches.dtype == dtype
    assert patches.shape == (taps.shape[0], patch_columns(case.kernel, channels))
    assert torch.equal(patches[:, : taps.shape[1]].double(), taps)
    assert not patches[:, taps.shape[1] :].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": 0}, r"kernel size must be in \[1, 16777216\], got 0"),
        ({"stride": 0}, r"stride must be in \[1, 16777216\], got 0"),
        ({"pad_top": -1}, r"pad_top must be in \[0, 16777216\], got -1"),
        ({"kernel": 9}, "padded input must be at least as large as the dilated kernel, 9 x 9"),
        ({"input": torch.zeros(3, 8, 8)}, r"input must be \[N, C, H, W\], got \[3, 8, 8\]"),
    ],
    ids=str,
)
def test_bad_arguments(changes: dict[str, object], message: str) -> None:
    arguments = {"input": torch.zeros(1, 3, 8, 8), "kernel": 3, "stride": 2}
    arguments |= dict.fromkeys(("pad_left", "pad_right", "pad_top", "pad_bottom"), 0)
    with pytest.raises(RuntimeError, match=f"image_patches: {message}"):
        torch.ops.mobilenet_ext.image_patches(**(arguments | changes))


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


def test_an_image_that_needs_a_gradient_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stem, "DEVICES_WITH_PATCHES", {"cpu"})
    stock, fused = make_pair(torch.float64)
    x = images(4, 3, 32, 32, dtype=torch.float64)
    grads = []
    for model in (stock, fused):
        image = x.clone().requires_grad_()
        model.train()(image).square().mean().backward()
        grads.append(image.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-9)


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
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the layer says of it."""
    monkeypatch.setattr(stem, "DEVICES_WITH_PATCHES", {"cpu"})
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
