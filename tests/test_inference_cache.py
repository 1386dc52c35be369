"""Eval without gradients runs a frozen copy: it must never be older than the weights."""

import copy
from collections.abc import Callable

import pytest
import torch
from models import images, make_pair
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from mobilenet_ext import FusedMobileNet, MobileNet


def assert_up_to_date(fused: nn.Module, stock: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(fused(x), stock(x), rtol=1e-9, atol=1e-9)


def optimizer_step(model: MobileNet) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.linspace(-1, 1, 2 * 3 * 64 * 64, dtype=torch.float64).sin().view(2, 3, 64, 64)
    model(x).square().sum().backward()
    optimizer.step()


def copy_into_a_weight(model: MobileNet) -> None:
    with torch.no_grad():
        model.blocks[3].depthwise.conv.weight.copy_(model.blocks[3].depthwise.conv.weight.flip(0))


def scale_in_place(model: MobileNet) -> None:
    with torch.no_grad():
        model.blocks[12].pointwise.bn.bias.mul_(2)


def load_state_dict(model: MobileNet) -> None:
    state = {name: value * 2 for name, value in model.state_dict().items()}
    model.load_state_dict(state)


def load_state_dict_of_one_layer(model: MobileNet) -> None:
    state = {name: value + 1 for name, value in model.blocks[0].state_dict().items()}
    model.blocks[0].load_state_dict(state)


def assign_state_dict(model: MobileNet) -> None:
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def replace_a_parameter(model: MobileNet) -> None:
    weight = model.stem.conv.weight.detach()
    model.stem.conv.weight = nn.Parameter(weight.flip(0).clone())


def replace_the_classifier(model: MobileNet) -> None:
    torch.manual_seed(3)
    model.reset_classifier(4)
    model.double()


def recalibrate_statistics(model: MobileNet) -> None:
    """Statistics measured anew: buffers change, parameters do not."""
    x = torch.linspace(-1, 1, 4 * 3 * 64 * 64, dtype=torch.float64).sin().view(4, 3, 64, 64)
    update_bn([x], model)


def move_one_running_mean(model: MobileNet) -> None:
    model.blocks[5].pointwise.bn.running_mean.add_(0.5)


def write_data_and_say_so(model: MobileNet) -> None:
    """Writes through `.data` leave no trace; the docs say to call `eval()` after them."""
    model.blocks[2].pointwise.conv.weight.data.mul_(-1)
    model.eval()


def assign_data(model: MobileNet) -> None:
    weight = model.blocks[2].pointwise.conv.weight
    weight.data = -weight.data


def swap_a_weight(model: MobileNet) -> None:
    """The object stays, and so does its count of writes."""
    weight = model.blocks[2].pointwise.conv.weight
    torch.utils.swap_tensors(weight, nn.Parameter(-weight.detach()))


CHANGES = [
    optimizer_step, copy_into_a_weight, scale_in_place, load_state_dict,
    load_state_dict_of_one_layer, assign_state_dict, replace_a_parameter, replace_the_classifier,
    recalibrate_statistics, move_one_running_mean, write_data_and_say_so,
    assign_data, swap_a_weight,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_noticed(change: Callable[[MobileNet], None]) -> None:
    """The change happens in eval mode, with the frozen copy warm, where it can go unnoticed."""
    stock, fused = (model.eval() for model in make_pair(torch.float64))
    x = images(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(2):  # the second call relies on what the first has read
            before = fused(x)
    change(stock), change(fused)
    assert_up_to_date(fused, stock, x)
    with torch.no_grad():
        after = fused(x)
    assert after.shape != before.shape or (after - before).abs().max() > 1e-2


def test_training_between_evaluations() -> None:
    """The usual loop: train, eval, train, eval."""
    stock, fused = make_pair(torch.float64)
    x = images(4, 3, 64, 64, dtype=torch.float64)
    for _ in range(2):
        for model in (stock, fused):
            model.train()
            optimizer_step(model)
            model.eval()
        with torch.no_grad():
            torch.testing.assert_close(fused(x), stock(x), rtol=1e-6, atol=1e-6)


def test_moving_average_of_weights() -> None:
    """EMA writes into a deep copy whose frozen copy is warm."""
    stock, fused = make_pair(torch.float64)
    averages = [
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)).eval()
        for model in (stock, fused)
    ]
    x = images(2, 3, 64, 64, dtype=torch.float64)
    for _ in range(2):
        for model, average in zip((stock, fused), averages, strict=True):
            model.eval()
            scale_in_place(model)
            copy_into_a_weight(model)
            average.update_parameters(model)
        assert_up_to_date(averages[1], averages[0], x)


def test_frozen_copy_is_reused_while_nothing_changes() -> None:
    fused = make_pair()[1].eval()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        fused(x)
        first = fused._frozen_for(x)
        assert first is not None
        assert fused._frozen_for(x) is first
        scale_in_place(fused)
        assert fused._frozen_for(x) is not first


def test_freeze_keeps_its_own_weights() -> None:
    _, fused = make_pair(torch.float64)
    x = images(2, 3, 64, 64, dtype=torch.float64)
    frozen = fused.eval().freeze()
    before = frozen(x)
    load_state_dict(fused)
    assert torch.equal(frozen(x), before)
    assert not frozen(x.requires_grad_()).requires_grad
    assert not list(frozen.parameters())


def test_freeze_of_a_training_network_uses_running_statistics() -> None:
    _, fused = make_pair(torch.float64)
    x = images(2, 3, 64, 64, dtype=torch.float64)
    frozen = fused.train().freeze()
    torch.testing.assert_close(frozen(x), fused.eval()(x).detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("features_only", [False, True], ids=["logits", "features"])
def test_autocast_does_not_change_a_frozen_network(features_only: bool) -> None:
    """The features run layer by layer, as everything does on a GPU."""
    _, fused = make_pair(features_only=features_only)
    frozen, x = fused.eval().freeze(), images(2, 3, 64, 64)
    expected = frozen(x)
    with torch.autocast("cpu", torch.bfloat16):
        actual = frozen(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_hook_is_not_bypassed() -> None:
    """A hook added after warming up must run, and what it returns counts."""
    stock, fused = (model.eval() for model in make_pair(torch.float64))
    x = images(1, 3, 64, 64, dtype=torch.float64)

    def double(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * 2

    with torch.no_grad():
        for _ in range(2):
            before = fused(x)
        layers = [model.blocks[4].depthwise.conv for model in (stock, fused)]
        handles = [layer.register_forward_hook(double) for layer in layers]
        assert_up_to_date(fused, stock, x)
        assert not torch.allclose(fused(x), before)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(fused(x), before)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blocks.6.pointwise", nn.Identity()),
        ("blocks.6", nn.Identity()),
        ("blocks.6.depthwise.bn", nn.Identity()),
        ("blocks.6.depthwise.bn", nn.GroupNorm(4, 128)),
        ("classifier", nn.Sequential(nn.Linear(256, 5), nn.ReLU())),
        ("dropout", nn.Tanh()),
    ],
)
def test_a_replaced_layer_is_not_bypassed(name: str, layer: nn.Module) -> None:
    """Surgery as for transfer learning: what is no longer MobileNet's runs as it is."""
    stock, fused = (model.eval() for model in make_pair())
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        for _ in range(2):
            fused(x)
        for model in (stock, fused):
            model.set_submodule(name, layer)
        torch.testing.assert_close(fused(x), stock(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused.train()(x), stock.train()(x), rtol=1e-2, atol=1e-2)


class Doubling(nn.Module):
    """A replaced dropout, and one with a mode."""

    def forward(self, input: Tensor) -> Tensor:
        return input * 2 if self.training else input


@pytest.mark.parametrize("name", ["dropout", "blocks.3.depthwise.bn"])
def test_one_layer_in_training_mode(name: str) -> None:
    """Monte Carlo dropout and the like: one layer trains in a network that does not."""
    stock, fused = (model.eval() for model in make_pair(torch.float64, dropout=0.0))
    x = images(4, 3, 64, 64, dtype=torch.float64)
    for model in (stock, fused):
        if name == "dropout":
            model.set_submodule(name, Doubling().eval())
    with torch.no_grad():
        for _ in range(2):
            before = fused(x)
        for model in (stock, fused):
            model.get_submodule(name).train()
        after = fused(x)
        torch.testing.assert_close(after, stock(x), rtol=1e-9, atol=1e-9)
    assert (after - before).abs().max() > 1e-2


def test_deep_copies_do_not_share_the_frozen_copy() -> None:
    fused = make_pair(torch.float64)[1].eval()
    x = images(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = fused(x)
        other = copy.deepcopy(fused)
        load_state_dict(fused)
        torch.testing.assert_close(other(x), before)
        assert not torch.allclose(fused(x), before)


def test_casting_drops_the_frozen_copy() -> None:
    stock, fused = (model.eval() for model in make_pair())
    with torch.no_grad():
        fused(images(1, 3, 64, 64))
        assert_up_to_date(fused.double(), stock.double(), images(1, 3, 64, 64, dtype=torch.float64))


def test_inference_tensors_as_weights() -> None:
    """They carry no version to watch, so the copy cannot be trusted."""
    with torch.inference_mode():
        fused = FusedMobileNet(7, 0.25).eval()
        x = images(1, 3, 64, 64)
        before = fused(x)
        fused.classifier.weight.mul_(2)
        fused.classifier.bias.add_(1)
        torch.testing.assert_close(fused(x), 2 * before + 1)
