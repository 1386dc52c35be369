"""The modules: equal to stock layers with explicit padding, in values, gradients and state."""

from collections.abc import Callable
from typing import Any

import oracle_mobilenet
import pytest
import torch
import torch.nn.functional as F
from models import images, named_gradients
from torch import Tensor, nn

from mobilenet_ext import layers
from mobilenet_ext.nn import DepthwiseConvBNReLU, PointwiseConvBNReLU, SeparableBlock


class Stock(nn.Module):
    """Pad, convolve, normalise, clip; children named as the fused modules' are."""

    def __init__(self, pads: tuple[int, int, int, int], clip: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pads, self.clip = pads, clip
        self.conv: nn.Module
        self.bn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.clip(self.bn(self.conv(F.pad(x, self.pads))))


def stock_twin(
    fused: DepthwiseConvBNReLU | PointwiseConvBNReLU, pads: tuple[int, int, int, int]
) -> Stock:
    """From the fused module's children; its conv's own padding is not used."""
    clip = {None: lambda y: y, "relu": F.relu, "relu6": F.relu6}[fused.activation]
    twin = Stock(pads, clip)
    conv, bn = fused.conv, fused.bn
    twin.conv = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
        dilation=conv.dilation, groups=conv.groups, bias=False,
    )  # fmt: skip
    twin.bn = nn.BatchNorm2d(bn.num_features, bn.eps, bn.momentum)
    twin.load_state_dict(fused.state_dict())
    return twin.double()


def check(fused: nn.Module, stock: nn.Module, x: Tensor) -> None:
    """Two training steps' worth of state, all gradients, then evaluation, in float64."""
    fused = fused.double()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for _ in range(2):
        outputs = fused(inputs[0]), stock(inputs[1])
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
        for output in outputs:
            (output * torch.arange(output.numel()).view(output.shape).cos()).sum().backward()
    gradients = named_gradients(stock)
    assert len(gradients) == len(list(fused.parameters()))
    torch.testing.assert_close(named_gradients(fused), gradients, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fused.state_dict(), stock.state_dict())
    fused.eval(), stock.eval()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), stock(x), rtol=1e-9, atol=1e-9)


def same(size: int, stride: int) -> tuple[int, int]:
    return oracle_mobilenet.stride_2_pads(size, "same", False) if stride == 2 else (1, 1)


@pytest.mark.parametrize(
    ("options", "pads"),
    [
        ({}, (1, 1, 1, 1)),
        ({"stride": 2, "padding": (0, 1, 0, 1)}, (0, 1, 0, 1)),
        ({"stride": 2, "padding": "same"}, (*same(10, 2), *same(9, 2))),
        ({"padding": "same"}, (1, 1, 1, 1)),
        ({"padding": 2, "dilation": 2, "activation": "relu"}, (2, 2, 2, 2)),
        ({"kernel_size": 5, "padding": 0, "activation": None}, (0, 0, 0, 0)),
        ({"depth_multiplier": 3, "stride": 2}, (1, 1, 1, 1)),
        ({"eps": 0.1, "momentum": 0.9}, (1, 1, 1, 1)),
        ({"momentum": None}, (1, 1, 1, 1)),  # cumulative average
    ],
    ids=str,
)
def test_depthwise(options: dict[str, Any], pads: tuple[int, int, int, int]) -> None:
    fused = DepthwiseConvBNReLU(6, **options)
    check(fused, stock_twin(fused, pads), images(3, 6, 9, 10, dtype=torch.float64))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("activation", ["relu6", None])
def test_pointwise(activation: str | None, layout: torch.memory_format) -> None:
    fused = PointwiseConvBNReLU(6, 10, activation=activation)
    x = images(3, 6, 5, 7, dtype=torch.float64).contiguous(memory_format=layout)
    check(fused, stock_twin(fused, (0, 0, 0, 0)), x)
    assert fused(x).is_contiguous(memory_format=layout)


def test_separable_block() -> None:
    fused = SeparableBlock(6, 10, stride=2, padding=(0, 1, 0, 1), activation="relu")
    stock = nn.Sequential()
    stock.depthwise = stock_twin(fused.depthwise, (0, 1, 0, 1))
    stock.pointwise = stock_twin(fused.pointwise, (0, 0, 0, 0))
    check(fused, stock, images(3, 6, 9, 8, dtype=torch.float64))


def test_batch_norm_without_running_statistics() -> None:
    """`track_running_stats=False`: the batch's own statistics also in eval."""
    fused = DepthwiseConvBNReLU(6)
    fused.bn = nn.BatchNorm2d(6, track_running_stats=False)
    twin = stock_twin(DepthwiseConvBNReLU(6), (1, 1, 1, 1))
    twin.bn = nn.BatchNorm2d(6, track_running_stats=False).double()
    twin.conv.weight.data.copy_(fused.conv.weight.data)
    check(fused, twin, images(3, 6, 9, 8, dtype=torch.float64))


def test_convolution_with_bias() -> None:
    """Somebody else's layer in place of ours: it is called, not read."""
    fused = DepthwiseConvBNReLU(6)
    twin = stock_twin(fused, (1, 1, 1, 1))
    fused.conv = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=True)
    twin.conv = nn.Conv2d(6, 6, 3, groups=6, bias=True)
    twin.load_state_dict(fused.state_dict())
    check(fused, twin.double(), images(3, 6, 9, 8, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"stride": (2, 1)}, {}),
        ({"stride": (2, 1), "padding": "same"}, {}),
        ({"stride": (1, 2), "padding": (0, 1, 0, 1)}, {}),
        ({"kernel_size": (3, 5)}, {}),
        ({"kernel_size": (5, 3), "padding": (2, 2, 1, 1), "dilation": (1, 2)}, {}),
        ({}, {"padding": (2, 1)}),
        ({}, {"padding": "valid"}),
        ({"padding": (0, 1, 0, 1)}, {"padding": (1, 1)}),
        ({}, {"stride": 2}),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_take(options: dict[str, Any], changes: dict[str, Any]) -> None:
    """Not the same in both axes, or edited: the children run as they are."""
    fused = DepthwiseConvBNReLU(6, **options)
    stock = layers.DepthwiseConvBNReLU(6, **options)
    stock.load_state_dict(fused.state_dict())
    for name, value in changes.items():
        setattr(fused.conv, name, value), setattr(stock.conv, name, value)
    check(fused, stock.double(), images(3, 6, 9, 10, dtype=torch.float64))


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"groups": 2}], ids=str)
def test_another_pointwise_convolution(options: dict[str, Any]) -> None:
    fused, stock = PointwiseConvBNReLU(6, 10), layers.PointwiseConvBNReLU(6, 10)
    for layer in (fused, stock):
        layer.conv = nn.Conv2d(6, 10, 1, bias=False, **options)
    stock.load_state_dict(fused.state_dict())
    check(fused, stock.double(), images(3, 6, 9, 10, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": -1}, "DepthwiseConvBNReLU: padding must be"),
        ({"padding": "valid"}, "DepthwiseConvBNReLU: padding must be"),
        ({"activation": "gelu"}, "DepthwiseConvBNReLU: activation must be in"),
    ],
)
def test_constructor_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthwiseConvBNReLU(6, **options)
