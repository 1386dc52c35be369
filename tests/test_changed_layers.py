"""Layers that were edited, replaced or patched run as the stock network runs them."""

import copy
from collections.abc import Callable

import pytest
import torch
from models import images, make_pair, randomise
from torch import Tensor, nn

from mobilenet_ext import FusedMobileNet, MobileNet


def dilate(model: MobileNet) -> None:
    """As for denser maps."""
    conv = model.blocks[12].depthwise.conv
    conv.dilation, conv.padding = (2, 2), (2, 2)


def dilate_by_numbers(model: MobileNet) -> None:
    """They mean the same in both axes."""
    conv = model.blocks[12].depthwise.conv
    conv.dilation = conv.padding = 2


def pad_twice(model: MobileNet) -> None:
    """The layer pads as well."""
    model.blocks[3].depthwise.conv.padding = (1, 2)


def set_stride(model: MobileNet) -> None:
    """A stride that the layer could have been built with."""
    model.blocks[3].depthwise.conv.stride = (1, 1)


def set_strides(model: MobileNet) -> None:
    model.blocks[3].depthwise.conv.stride = (2, 1)


def stride_a_pointwise_layer(model: MobileNet) -> None:
    model.blocks[2].pointwise.conv.stride = (2, 2)


def set_padding_of_the_layer(model: MobileNet) -> None:
    """It only says what its convolution does."""
    model.blocks[0].depthwise.padding = 0


def replace_by_a_dense_convolution(model: MobileNet) -> None:
    model.blocks[0].depthwise.conv = convolution(8, 8, 3, padding=1)


def replace_by_reflecting_edges(model: MobileNet) -> None:
    conv = convolution(8, 8, 3, padding=1, groups=8, padding_mode="reflect")
    model.blocks[0].depthwise.conv = conv


def replace_by_groups(model: MobileNet) -> None:
    model.blocks[4].pointwise.conv = convolution(64, 64, 1, groups=64)


def replace_that_of_the_stem(model: MobileNet) -> None:
    model.stem.conv = convolution(3, 8, 3, stride=1, padding=1)


def convolution(*sizes: int, **options: object) -> nn.Conv2d:
    """The same for every model."""
    torch.manual_seed(0)
    return nn.Conv2d(*sizes, bias=False, dtype=torch.float64, **options)


EDITS = [
    dilate,
    dilate_by_numbers,
    pad_twice,
    set_stride,
    set_strides,
    stride_a_pointwise_layer,
    set_padding_of_the_layer,
    replace_by_a_dense_convolution,
    replace_by_reflecting_edges,
    replace_by_groups,
    replace_that_of_the_stem,
]
over_edits = pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)


def assert_alike(fused: FusedMobileNet, stock: MobileNet) -> None:
    """Feature maps and logits, in both modes."""
    x = images(4, 3, 64, 64, dtype=torch.float64)
    for mode in (True, False):
        fused.train(mode), stock.train(mode)
        with torch.set_grad_enabled(mode):
            for call in (type(stock).forward_features, type(stock).__call__):
                actual, expected = call(fused, x), call(stock, x)
                torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@over_edits
def test_an_edited_convolution_runs_as_it_is(edit: Callable[[MobileNet], None]) -> None:
    stock, fused = make_pair(torch.float64)
    for model in (stock, fused):
        edit(model)
    assert_alike(fused, stock)


@over_edits
def test_an_edit_is_noticed(edit: Callable[[MobileNet], None]) -> None:
    """Between steps of training and, at the latest, by eval()."""
    stock, fused = make_pair(torch.float64)
    x = images(4, 3, 64, 64, dtype=torch.float64)
    for model in (stock, fused):
        model.train()(x)
        model.eval()
        with torch.no_grad():
            model(x)
        model.train()(x)
        edit(model)
    torch.testing.assert_close(fused(x), stock(x), rtol=1e-6, atol=1e-6)
    assert_alike(fused, stock)


@over_edits
def test_freeze_folds_as_it_is_or_says_so(edit: Callable[[MobileNet], None]) -> None:
    stock, fused = make_pair(torch.float64)
    for model in (stock, fused):
        edit(model)
    x = images(2, 3, 64, 64, dtype=torch.float64)
    if edit is set_stride:
        frozen = fused.freeze()(x)
        torch.testing.assert_close(frozen, stock.eval()(x).detach(), rtol=1e-9, atol=1e-9)
        return
    with pytest.raises(ValueError, match="freeze: layer must be Conv2d as the layer builds it"):
        fused.freeze()


def test_a_stem_of_groups_cannot_be_folded() -> None:
    stock, fused = make_pair(torch.float64, in_channels=4)
    for model in (stock, fused):
        model.stem.conv = convolution(4, 8, 3, stride=2, groups=2)
    x = images(2, 4, 64, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match="freeze: layer must be Conv2d as the layer builds it"):
        fused.freeze()
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), stock.eval()(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [1, 12, 14])
def test_another_number_of_blocks(count: int) -> None:
    """The last one's map is the last map."""
    stock, fused = make_pair(torch.float64, num_classes=0)
    block = type(stock.blocks[0])(256, 256).double()
    for model in (stock, fused):
        model.blocks = nn.ModuleList([*model.blocks, block][:count])
    assert_alike(fused, stock)
    x = images(2, 3, 64, 64, dtype=torch.float64)
    expected = nn.Sequential(stock.stem, *stock.blocks)(x)
    torch.testing.assert_close(stock.forward_features(x), expected, rtol=0, atol=0)


def stride_by_4(model: MobileNet) -> None:
    model.stem = type(model.stem)(3, 8, 3, stride=4, padding=1, eps=1e-3)


def stride_by_3(model: MobileNet) -> None:
    model.blocks[1] = type(model.blocks[1])(16, 32, stride=3)


def pad_by_3(model: MobileNet) -> None:
    model.blocks[1] = type(model.blocks[1])(16, 32, padding=3)


def pad_one_side_by_3(model: MobileNet) -> None:
    model.blocks[1] = type(model.blocks[1])(16, 32, padding=(0, 1, 3, 0))


def add_twenty_blocks(model: MobileNet) -> None:
    block = type(model.blocks[0])
    model.blocks.extend([block(256, 256) for _ in range(20)])


@pytest.mark.parametrize(
    "change",
    [stride_by_4, stride_by_3, pad_by_3, pad_one_side_by_3, add_twenty_blocks],
    ids=lambda change: change.__name__,
)
def test_layers_that_the_op_for_all_does_not_take(change: Callable[[MobileNet], None]) -> None:
    """They train, so they infer: one after the other."""
    stock, fused = make_pair()
    for model in (stock, fused):
        change(model)
    randomise(stock)
    fused.load_state_dict(stock.state_dict())
    x = images(2, 3, 256, 256)
    with torch.no_grad():
        expected = stock.eval().double()(x.double())
        for model in (fused.eval(), fused.freeze()):
            error = (model(x) - expected).abs().max() / expected.abs().max()
            assert error <= 1e-3
    assert fused._frozen.frozen is not None
    x = x.double()
    actual = fused.double().train()(x)
    torch.testing.assert_close(actual, stock.train()(x), rtol=1e-6, atol=1e-6)


def assign_forward(model: nn.Module) -> None:
    """Wrap a module's forward as hooks of other libraries do."""
    forward = model.forward
    model.forward = lambda x: forward(x).flip(1)


def assert_one_step_alike(fused: FusedMobileNet, stock: MobileNet, before: Tensor) -> None:
    """The outputs are the stock network's, and no longer those of before."""
    x = seen(fused)
    with torch.set_grad_enabled(fused.training):
        actual = fused(x)
        torch.testing.assert_close(actual, stock(x), rtol=1e-6, atol=1e-6)
    assert (actual - before).abs().max() > 1e-2


def seen(model: MobileNet) -> Tensor:
    """The same images every time."""
    torch.manual_seed(0)
    return images(4, 3, 64, 64, dtype=next(model.parameters()).dtype)


WRAPPED = ["stem", "stem.conv", "blocks.3", "blocks.3.depthwise", "blocks.3.depthwise.conv",
           "blocks.12.pointwise.bn", "dropout", "classifier"]  # fmt: skip
over_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@over_modes
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "new"])
@pytest.mark.parametrize("name", WRAPPED)
def test_an_assigned_forward_runs(name: str, warm: bool, training: bool) -> None:
    stock, fused = (model.train(training) for model in make_pair(torch.float64))
    x = seen(fused)
    with torch.set_grad_enabled(training):
        before = copy.deepcopy(stock)(x)
        if warm:
            stock(x), fused(x)
    for model in (stock, fused):
        assign_forward(model.get_submodule(name))
        if warm and not training:
            model.eval()  # as the docs say
    assert_one_step_alike(fused, stock, before)
    for model in (stock, fused):
        del model.get_submodule(name).forward
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(fused(x), stock(x), rtol=1e-6, atol=1e-6)
    assert training or fused._frozen is not None


@over_modes
@pytest.mark.parametrize("name", ["forward", "forward_features"])
def test_an_assigned_method_of_the_network_runs(name: str, training: bool) -> None:
    stock, fused = (model.train(training) for model in make_pair(torch.float64))
    before = copy.deepcopy(stock)(seen(stock))
    for model in (stock, fused):
        method = getattr(model, name)
        setattr(model, name, lambda x, method=method: method(x).flip(1))
    assert_one_step_alike(fused, stock, before)


def test_an_assigned_forward_runs_in_a_compiled_network() -> None:
    stock, fused = make_pair(torch.float64)
    x = seen(stock)
    before = copy.deepcopy(stock)(x)
    for model in (stock, fused):
        assign_forward(model.blocks[3].depthwise)
    actual = torch.compile(fused, backend="eager")(x)
    torch.testing.assert_close(actual, stock(x), rtol=1e-6, atol=1e-6)
    assert (actual - before).abs().max() > 1e-2
