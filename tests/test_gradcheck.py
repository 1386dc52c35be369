"""First and second derivatives of every autograd Function, by finite differences in float64."""

from collections.abc import Callable, Sequence

import oracle
import pytest
import torch
from cases import ConvCase
from torch import Tensor
from torch.autograd import gradcheck
from torch.autograd import gradgradcheck as full_gradgradcheck

from mobilenet_ext import functional
from mobilenet_ext.functional import BatchNorm, RawMap

CHANNELS = 3
over_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])

# Small maps: each has borders on all sides, and two are larger than their kernel.
GEOMETRIES = {
    "same": ConvCase("", 2, CHANNELS, 4, 3),
    "keras_stride_2": ConvCase("", 2, CHANNELS, 5, 4, stride=2, padding=(0, 1, 0, 1)),
    "torch_stride_2": ConvCase("", 2, CHANNELS, 5, 4, stride=2),
    "no_padding_kernel_2": ConvCase("", 2, CHANNELS, 4, 4, kernel=2, padding=(0, 0, 0, 0)),
    "dilation_2": ConvCase("", 2, CHANNELS, 4, 3, padding=(2, 1, 2, 2), dilation=2),
    "kernel_5_smaller_map": ConvCase("", 3, CHANNELS, 2, 3, kernel=5, padding=(2, 2, 2, 2)),
}


@pytest.fixture(autouse=True)
def _one_thread(threads: None) -> None:
    """Thousands of calls on a few dozen values each."""
    torch.set_num_threads(1)


def gradgradcheck(call: Callable[..., Tensor], inputs: Sequence[Tensor]) -> bool:
    """Along random directions: every second derivative on its own would take minutes."""
    return full_gradgradcheck(call, inputs, fast_mode=True)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def batch_norm(training: bool, activation: str | None) -> BatchNorm:
    """Scales and shifts that put values on both sides of 0 and of 6."""
    scale = torch.tensor([3.0, -4.0, 5.0], dtype=torch.float64, requires_grad=True)
    shift = torch.tensor([3.0, 1.0, 5.0], dtype=torch.float64, requires_grad=True)
    mean, var = leaf(CHANNELS).detach(), torch.rand(CHANNELS, dtype=torch.float64) + 0.5
    running = (None, None) if training else (mean, var)
    return BatchNorm(scale, shift, *running, training, 0.1, 1e-3, activation)


def unit(
    case: ConvCase, input_bn: BatchNorm | None, bn: BatchNorm
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The narrow unit, or with `input_bn` the block, as a function of tensors, and the tensors."""
    inputs = [leaf(*case.shape), leaf(CHANNELS, 1, case.kernel, case.kernel), bn.weight, bn.bias]
    inputs += [input_bn.weight, input_bn.bias, leaf(4, CHANNELS, 1, 1)] if input_bn else []
    geometry = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}

    def call(x: Tensor, weight: Tensor, *vectors: Tensor) -> Tensor:
        after = bn._replace(weight=vectors[0], bias=vectors[1])
        if input_bn is None:
            options = {k: v for k, v in after.arguments.items() if k in OPTIONS}
            return functional.depthwise_conv_bn_relu(x, weight, *after[:4], **geometry, **options)
        before = input_bn._replace(weight=vectors[2], bias=vectors[3])
        block = functional.bn_relu_separable_conv(
            RawMap(x), before, weight, after, vectors[4], **geometry
        )
        return block.tensor

    return call, tuple(x for x in inputs if x is not None)


OPTIONS = ("training", "momentum", "eps", "activation")


@over_modes
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_depthwise_conv_bn_relu(geometry: str, training: bool) -> None:
    call, inputs = unit(GEOMETRIES[geometry], None, batch_norm(training, "relu6"))
    assert gradcheck(call, inputs)


@over_modes
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_block_unit(geometry: str, training: bool) -> None:
    norms = batch_norm(training, "relu6"), batch_norm(training, "relu6")
    call, inputs = unit(GEOMETRIES[geometry], *norms)
    assert gradcheck(call, inputs)


@pytest.mark.parametrize(
    ("before", "after", "modes"),
    [
        ("relu", "relu", (True, True)),
        (None, None, (True, True)),
        ("relu", None, (False, True)),  # frozen before, training after
        (None, "relu", (True, False)),  # training before, frozen after
    ],
)
def test_activations_and_mixed_modes(
    before: str | None, after: str | None, modes: tuple[bool, bool]
) -> None:
    case = GEOMETRIES["keras_stride_2"]
    call, inputs = unit(case, batch_norm(modes[0], before), batch_norm(modes[1], after))
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


@over_modes
@pytest.mark.parametrize("geometry", ["same", "keras_stride_2", "dilation_2"])
def test_second_derivatives_of_the_block_unit(geometry: str, training: bool) -> None:
    norms = batch_norm(training, "relu6"), batch_norm(training, "relu6")
    call, inputs = unit(GEOMETRIES[geometry], *norms)
    assert gradgradcheck(call, inputs)


@over_modes
def test_second_derivatives_of_the_narrow_unit(training: bool) -> None:
    call, inputs = unit(GEOMETRIES["torch_stride_2"], None, batch_norm(training, "relu6"))
    assert gradgradcheck(call, inputs)


@over_modes
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_bn_relu(activation: str | None, training: bool) -> None:
    bn = batch_norm(training, activation)

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.bn_relu(x, **bn._replace(weight=weight, bias=bias).arguments)

    inputs = (leaf(2, CHANNELS, 4, 3), bn.weight, bn.bias)
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_pointwise_conv() -> None:
    def call(x: Tensor, weight: Tensor) -> Tensor:
        return functional.pointwise_conv(x, weight).tensor

    inputs = (leaf(2, CHANNELS, 3, 2), leaf(5, CHANNELS, 1, 1))
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_memory_formats(memory_format: torch.memory_format) -> None:
    norms = batch_norm(True, "relu6"), batch_norm(True, "relu6")
    call, inputs = unit(GEOMETRIES["same"], *norms)
    x = inputs[0].detach().contiguous(memory_format=memory_format).requires_grad_()
    assert gradcheck(call, (x, *inputs[1:]))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2, 3), (4,), (5,), (6,), (1, 5), (0, 2), (0, 6)])
def test_second_derivatives_of_a_subset(wanted: tuple[int, ...]) -> None:
    """Constants among the inputs: the recorded backward must not ask for their gradients."""
    norms = batch_norm(True, "relu6"), batch_norm(True, "relu6")
    call, inputs = unit(GEOMETRIES["same"], *norms)
    chosen = [x if i in wanted else x.detach() for i, x in enumerate(inputs)]
    assert gradcheck(call, chosen, fast_mode=True)
    assert gradgradcheck(call, chosen)


def test_derivatives_when_one_input_is_computed_from_another() -> None:
    """Partial derivatives must not leak: weight and scale depend on x, and autograd adds up."""
    norms = batch_norm(True, "relu6"), batch_norm(True, "relu6")
    call, inputs = unit(GEOMETRIES["same"], *norms)

    def dependent(x: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
        level = x.mean((0, 2, 3))
        vectors = (gamma + level, level, gamma, level + 3)
        return call(x, weight * level.view(-1, 1, 1, 1), *vectors, inputs[6].detach())

    assert gradcheck(dependent, inputs[:3])
    assert gradgradcheck(dependent, inputs[:3])


def test_gradient_penalty_matches_stock_torch() -> None:
    """A whole double-backward step, as WGAN-GP takes it."""
    case = GEOMETRIES["keras_stride_2"]
    norms = batch_norm(True, "relu6"), batch_norm(True, "relu6")
    call, inputs = unit(case, *norms)

    def penalty(output: Tensor) -> list[Tensor]:
        (slope,) = torch.autograd.grad(output.square().sum(), inputs[0], create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), inputs))

    x, weight, *_, pointwise = inputs
    expected = penalty(oracle.block(x, norms[0], weight, norms[1], pointwise, case))
    torch.testing.assert_close(penalty(call(*inputs)), expected, rtol=1e-9, atol=1e-9)


def test_backward_twice_through_a_freed_graph_is_an_error() -> None:
    norms = batch_norm(True, "relu6"), batch_norm(True, "relu6")
    call, inputs = unit(GEOMETRIES["same"], *norms)
    loss = call(*inputs).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_saved_input_changed_in_place_is_an_error() -> None:
    norms = batch_norm(True, "relu6"), batch_norm(True, "relu6")
    call, inputs = unit(GEOMETRIES["same"], *norms)
    x = inputs[0].detach().clone()
    loss = call(x, *inputs[1:]).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
