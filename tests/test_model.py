"""MobileNet is the network of the survey; FusedMobileNet is the same network."""

import re
from typing import Any

import numpy as np
import oracle_mobilenet
import pytest
import torch
from models import images, make_pair, named_gradients, randomise
from torch import nn

from mobilenet_ext import FusedMobileNet, MobileNet

CONFIGS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "keras": ({}, (64, 64)),
    "keras_odd": ({}, (65, 71)),
    "same_odd": ({"padding": "same"}, (67, 61)),
    "same_even": ({"padding": "same"}, (64, 70)),
    "torch_odd": ({"padding": "torch"}, (63, 65)),
    "relu": ({"activation": "relu"}, (64, 64)),
    "alpha_0_35_gray": ({"alpha": 0.35, "in_channels": 1}, (64, 66)),
    "depth_multiplier_2": ({"depth_multiplier": 2}, (64, 64)),
    "output_stride_8": ({"output_stride": 8}, (65, 64)),
    "output_stride_16": ({"output_stride": 16, "padding": "torch"}, (64, 65)),
    "timm": ({"padding": "torch", "bn_eps": 1e-5, "bn_momentum": 0.1}, (64, 64)),
    "smallest_input": ({}, (32, 32)),
}
over_configs = pytest.mark.parametrize(("config", "size"), CONFIGS.values(), ids=CONFIGS)


@pytest.mark.parametrize("network", [MobileNet, FusedMobileNet])
@pytest.mark.parametrize(
    ("alpha", "classes", "total", "trainable"),
    [
        (0.5, 10, 834_666, 823_722),
        (1.0, 1000, 4_253_864, 4_231_976),
        (0.75, 1000, 2_601_976, 2_585_560),
        (0.5, 1000, 1_342_536, 1_331_592),
        (0.25, 1000, 475_544, 470_072),
    ],
)
def test_parameter_counts(
    network: type[MobileNet], alpha: float, classes: int, total: int, trainable: int
) -> None:
    """As the survey and Keras count them: running statistics are parameters, not trainable."""
    model = network(classes, alpha)
    parameters = sum(p.numel() for p in model.parameters())
    statistics = sum(b.numel() for b in model.buffers() if b.dim())
    assert parameters == trainable
    assert parameters + statistics == total


def test_layer_widths_of_the_survey() -> None:
    """Spot checks of the table for alpha 0.5 at 32 pixels."""
    shapes = {name: tuple(p.shape) for name, p in FusedMobileNet(10, 0.5).named_parameters()}
    assert shapes["stem.conv.weight"] == (16, 3, 3, 3)
    assert shapes["blocks.0.depthwise.conv.weight"] == (16, 1, 3, 3)
    assert shapes["blocks.1.pointwise.conv.weight"] == (64, 32, 1, 1)
    assert shapes["blocks.12.pointwise.conv.weight"] == (512, 512, 1, 1)
    assert shapes["classifier.weight"] == (10, 512)


@over_configs
def test_stock_network_is_the_one_written_out(
    config: dict[str, Any], size: tuple[int, int]
) -> None:
    """Every padding convention against explicit `F.pad`, in float64."""
    model = make_pair(torch.float64, **config)[0].eval()
    x = images(2, model.config["in_channels"], *size, dtype=torch.float64)
    expected = oracle_mobilenet.forward(model.state_dict(), x, model.config)
    assert expected.std() > 1e-3
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@over_configs
def test_fused_network_evaluates_alike(config: dict[str, Any], size: tuple[int, int]) -> None:
    """With gradients (the chain) and without (the frozen copy)."""
    stock, fused = (model.eval() for model in make_pair(torch.float64, **config))
    x = images(2, stock.config["in_channels"], *size, dtype=torch.float64)
    expected = stock(x)
    torch.testing.assert_close(fused(x), expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(fused.freeze()(x), expected, rtol=1e-10, atol=1e-10)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), expected, rtol=1e-10, atol=1e-10)


@over_configs
def test_fused_network_trains_alike(config: dict[str, Any], size: tuple[int, int]) -> None:
    """Logits, every gradient, and every running statistic of a step."""
    stock, fused = make_pair(torch.float64, **config)
    x = images(4, stock.config["in_channels"], *size, dtype=torch.float64)
    x_fused = x.clone().requires_grad_()
    outputs = stock(x.requires_grad_()), fused(x_fused)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-8, atol=1e-8)
    for output in outputs:
        (output * torch.arange(output.numel()).view(output.shape).cos()).sum().backward()
    gradients = [named_gradients(model) for model in (stock, fused)]
    assert len(gradients[0]) == len(list(stock.parameters()))
    for name, expected in gradients[0].items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            gradients[1][name], expected, rtol=1e-6, atol=1e-8 * (1 + scale), msg=name
        )
    torch.testing.assert_close(x_fused.grad, x.grad, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(dict(fused.named_buffers()), dict(stock.named_buffers()))


@pytest.mark.parametrize(
    ("padding", "output_stride", "least"),
    [("keras", 32, 31), ("keras", 16, 15), ("keras", 8, 7), ("same", 32, 1), ("torch", 32, 1)],
)
def test_smallest_inputs(padding: str, output_stride: int, least: int) -> None:
    """As the README and the docstring have them: below, the last map is empty."""
    config = {"padding": padding, "output_stride": output_stride}
    stock, fused = (model.eval() for model in make_pair(torch.float64, **config))
    for size in ((least, 64), (64, least)):
        x = images(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(fused(x), stock(x), rtol=1e-10, atol=1e-10)
    if least > 1:
        for model in (stock, fused):
            with pytest.raises(RuntimeError, match=r"[Kk]ernel"):
                model(images(2, 3, least - 1, 64, dtype=torch.float64))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32_in_both_layouts(layout: torch.memory_format) -> None:
    stock, fused = make_pair()
    x = images(4, 3, 64, 64).contiguous(memory_format=layout)
    torch.testing.assert_close(fused(x), stock(x), rtol=1e-3, atol=1e-3)
    stock.eval(), fused.eval()
    expected = oracle_mobilenet.forward(fused.state_dict(), x, fused.config)
    with torch.no_grad():
        torch.testing.assert_close(fused(x).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_frozen_batch_norms_while_training() -> None:
    """Fine-tuning with `bn.eval()`: statistics stay, gradients flow, also through a mixture."""
    stock, fused = make_pair(torch.float64)
    for model in (stock, fused):
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d) and not name.startswith("blocks.7"):
                module.eval()
    x = images(4, 3, 64, 64, dtype=torch.float64)
    before = fused.stem.bn.running_mean.clone()
    outputs = stock(x), fused(x)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(named_gradients(fused), named_gradients(stock), rtol=1e-6, atol=1e-7)
    assert torch.equal(fused.stem.bn.running_mean, before)
    torch.testing.assert_close(dict(fused.named_buffers()), dict(stock.named_buffers()))


def test_frozen_layers_get_no_gradient() -> None:
    stock, fused = make_pair(torch.float64)
    for model in (stock, fused):
        model.stem.requires_grad_(False)
        model.blocks[:6].requires_grad_(False)
        model.blocks[8].depthwise.bn.requires_grad_(False)
        model(images(2, 3, 64, 64, dtype=torch.float64).cos()).sum().backward()
        torch.manual_seed(0)
    assert named_gradients(fused).keys() == named_gradients(stock).keys()
    assert "blocks.7.depthwise.conv.weight" in named_gradients(fused)
    assert "blocks.8.depthwise.bn.weight" not in named_gradients(fused)


def test_state_dicts_are_interchangeable() -> None:
    stock, fused = make_pair()
    assert list(stock.state_dict()) == list(fused.state_dict())
    assert "blocks.12.pointwise.bn.num_batches_tracked" in fused.state_dict()
    for other in (MobileNet(7, 0.25), FusedMobileNet(7, 0.25)):
        assert not any(other.load_state_dict(fused.state_dict()))
        for name, value in other.state_dict().items():
            assert torch.equal(value, fused.state_dict()[name]), name


@pytest.mark.parametrize("output_stride", [32, 8])
def test_features_only(output_stride: int) -> None:
    config = {"features_only": True, "output_stride": output_stride}
    stock, fused = (model.eval() for model in make_pair(torch.float64, **config))
    x = images(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, maps = stock(x), fused(x)
    strides = [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    assert [list(m.shape[2:]) for m in maps] == [[64 // s, 96 // s] for s in strides]
    assert [m.shape[1] for m in maps] == [16, 32, 64, 128, 256]
    torch.testing.assert_close(maps, expected, rtol=1e-10, atol=1e-10)
    last = oracle_mobilenet.forward_features(stock.state_dict(), x, stock.config)
    torch.testing.assert_close(maps[-1], last, rtol=1e-10, atol=1e-10)


def test_forward_features_and_reset_classifier() -> None:
    fused = make_pair()[1].eval()
    x = images(2, 3, 64, 64)
    assert fused.forward_features(x).shape == (2, 256, 2, 2)
    fused.reset_classifier(3)
    assert fused(x).shape == (2, 3)
    assert fused.config["num_classes"] == 3
    fused.reset_classifier(np.int64(4))  # type: ignore[arg-type]
    assert type(fused.config["num_classes"]) is int
    fused.reset_classifier(0)
    torch.testing.assert_close(fused(x), fused.forward_features(x).mean((2, 3)))


@pytest.mark.parametrize("classes", [-1, 10.0, True, "10"])
def test_reset_classifier_changes_nothing_when_it_fails(classes: Any) -> None:
    model = FusedMobileNet(7, 0.25)
    model.class_names = tuple("abcdefg")
    config, classifier = dict(model.config), model.classifier
    message = f"reset_classifier: num_classes must be an int, at least 0, got {classes!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        model.reset_classifier(classes)
    assert model.config == config
    assert model.class_names == tuple("abcdefg")
    assert model.classifier is classifier


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_classes": True}, "num_classes must be an int, at least 0, got True"),
        ({"num_classes": -1}, "num_classes must be an int, at least 0, got -1"),
        ({"alpha": 0.0}, "alpha must be finite and at least 1/32, got 0.0"),
        ({"alpha": float("nan")}, "alpha must be finite and at least 1/32, got nan"),
        ({"in_channels": 0}, "in_channels must be an int, at least 1, got 0"),
        ({"depth_multiplier": 0}, "depth_multiplier must be an int, at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ({"activation": "silu"}, "activation must be 'relu' or 'relu6', got 'silu'"),
        ({"padding": "valid"}, "padding must be one of ('keras', 'same', 'torch'), got 'valid'"),
        ({"bn_eps": 0.0}, "bn_eps must be positive, got 0.0"),
        ({"bn_momentum": 2.0}, "bn_momentum must be None or in [0, 1], got 2.0"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_constructor_arguments(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^FusedMobileNet: {re.escape(message)}$"):
        FusedMobileNet(**config)


def test_wrong_input() -> None:
    _, fused = make_pair()
    for x in (images(3, 64, 64), images(2, 1, 64, 64)):
        for mode in (True, False):
            fused.train(mode)
            with pytest.raises(ValueError, match=r"\[N, C, H, W\] with C = 3, got \["):
                fused(x)


def test_randomise_is_reproducible() -> None:
    """The pairs of the other tests really share their weights."""
    a, b = MobileNet(7, 0.25), MobileNet(7, 0.25)
    randomise(a), randomise(b)
    assert torch.equal(a.blocks[5].depthwise.bn.bias, b.blocks[5].depthwise.bn.bias)
