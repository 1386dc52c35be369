"""The functional units: values, gradients and running statistics against the float64 oracle."""

from collections.abc import Callable, Sequence

import oracle
import pytest
import torch
from cases import (
    FEW_CASES,
    ConvCase,
    case_named,
    make_tensor,
    make_vector,
    make_weight,
    over_cases,
    over_dtypes,
)
from oracle import assert_values
from torch import Tensor
from torch._prims_common import suggest_memory_format

from mobilenet_ext import functional
from mobilenet_ext.functional import BatchNorm, RawMap

over_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def make_batch_norm(
    channels: int,
    dtype: torch.dtype = torch.float32,
    *,
    training: bool,
    activation: str | None = "relu6",
) -> BatchNorm:
    """Scales of both signs and shifts that bring values past every kink."""
    return BatchNorm(
        make_vector(channels, -2, 4, dtype),
        make_vector(channels, -1, 4, dtype),
        make_vector(channels, -1, 1, dtype),
        make_vector(channels, 0.5, 4, dtype),
        training,
        momentum=0.3,
        eps=1e-3,
        activation=activation,
    )


def detached_copy(bn: BatchNorm) -> BatchNorm:
    """The same with running statistics of its own: they are updated in place."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return bn._replace(running_mean=bn.running_mean.clone(), running_var=bn.running_var.clone())


def call_block(
    x: Tensor,
    input_bn: BatchNorm,
    weight: Tensor,
    bn: BatchNorm,
    pointwise_weight: Tensor,
    case: ConvCase,
    **options: bool,
) -> RawMap:
    return functional.bn_relu_separable_conv(
        RawMap(x),
        input_bn,
        weight,
        bn,
        pointwise_weight,
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        **options,
    )


def call_unit(x: Tensor, weight: Tensor, bn: BatchNorm, case: ConvCase) -> Tensor:
    geometry = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    options = {k: v for k, v in bn.arguments.items() if not k.startswith(("bn_", "running_"))}
    return functional.depthwise_conv_bn_relu(x, weight, *bn[:4], **geometry, **options)


def check_gradients(
    actual: Callable[[], Tensor],
    expected: Callable[[], Tensor],
    inputs: Sequence[Tensor],
    grad_layout: str,
) -> None:
    """Compares values and the gradients of `inputs`; the first is the map, the others sums."""
    for x in inputs:
        x.requires_grad_()
    output, exact = actual(), expected()
    dtype = inputs[0].dtype
    assert_values(output, exact, dtype, scale=8.0, roundings=2)
    assert output.is_contiguous(memory_format=suggest_memory_format(inputs[0]))

    grad = make_tensor(exact.shape, grad_layout, dtype)
    gradients = torch.autograd.grad(output, inputs, grad)
    exact_gradients = torch.autograd.grad(exact, inputs, grad.double())
    largest = exact_gradients[0].abs().max().item() if exact_gradients[0].numel() else 0.0
    assert_values(gradients[0], exact_gradients[0].double(), dtype, scale=largest, roundings=3)
    # Parameters are float32 beside 16-bit maps, whose rounding their gradients inherit: of the
    # gradients, and in a block of those between its convolutions.
    inherited = 1 + 5e4 * oracle.TOLERANCES[dtype].rounding
    total = 20 * inherited * grad.double().abs().sum((0, 2, 3)).max().item()
    for x, gradient, exact_gradient in zip(
        inputs[1:], gradients[1:], exact_gradients[1:], strict=True
    ):
        assert_values(gradient, exact_gradient.double(), x.dtype, scale=total)


def check_unit(case: ConvCase, dtype: torch.dtype, *, training: bool) -> None:
    """Values and all gradients of the narrow unit, made by autograd through the oracle."""
    bn = make_batch_norm(case.channels, dtype, training=training, activation=case.activation)
    x, weight = make_tensor(case.shape, case.layout, dtype), make_weight(case, dtype)
    check_gradients(
        lambda: call_unit(x, weight, detached_copy(bn), case),
        lambda: oracle.unit(x, None, weight, bn, case),
        [x, weight, bn.weight, bn.bias],
        case.grad_layout,
    )


def check_block(case: ConvCase, dtype: torch.dtype, *, training: bool) -> None:
    """The same of the block; its pointwise convolution leaves the channels nearly as they are."""
    options = {"training": training, "activation": case.activation}
    bn, input_bn = (make_batch_norm(case.channels, dtype, **options) for _ in range(2))
    x, weight = make_tensor(case.shape, case.layout, dtype), make_weight(case, dtype)
    pointwise = make_pointwise_weight(case.channels, dtype)
    check_gradients(
        lambda: (
            call_block(
                x, detached_copy(input_bn), weight, detached_copy(bn), pointwise, case
            ).tensor
        ),
        lambda: oracle.block(x, input_bn, weight, bn, pointwise, case),
        [x, weight, pointwise, bn.weight, bn.bias, input_bn.weight, input_bn.bias],
        case.grad_layout,
    )


def make_pointwise_weight(channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[C + 1, C, 1, 1]; a row of it keeps the size of what it multiplies."""
    weight = torch.randn(channels + 1, channels, 1, 1) / channels
    return (weight + torch.eye(channels + 1, channels)[:, :, None, None]).to(dtype)


HOSTILE_CASES = (
    "smaller_than_kernel", "odd_map", "channels_1", "channels_9", "stride_2_keras_odd_map",
    "stride_2_even_map", "kernel_7", "dilation_2_stride_2", "bands", "image_groups", "contiguous",
    "mixed_layouts", "sliced", "transposed", "expanded_batch", "expanded_all", "misaligned",
)  # fmt: skip


@over_cases(HOSTILE_CASES)
@over_modes
def test_depthwise_conv_bn_relu(case: ConvCase, training: bool) -> None:
    check_unit(case, torch.float32, training=training)


@over_cases(HOSTILE_CASES)
@over_modes
def test_block_unit(case: ConvCase, training: bool) -> None:
    check_block(case, torch.float32, training=training)


@over_dtypes
@over_cases(FEW_CASES)
def test_every_dtype(case: ConvCase, dtype: torch.dtype) -> None:
    check_block(case, dtype, training=True)
    check_unit(case, dtype, training=False)


@over_dtypes
@over_modes
@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "expanded_map"])
def test_bn_relu(layout: str, training: bool, dtype: torch.dtype) -> None:
    bn = make_batch_norm(17, dtype, training=training)
    x = make_tensor((3, 17, 9, 7), layout, dtype)
    assert bn.weight is not None
    assert bn.bias is not None
    check_gradients(
        lambda: functional.bn_relu(x, **detached_copy(bn).arguments),
        lambda: oracle.batch_norm_act(x, bn),
        [x, bn.weight, bn.bias],
        "sliced",
    )


def expected_running(bn: BatchNorm, raw: Tensor) -> tuple[Tensor, Tensor]:
    """The running statistics after a batch, as torch moves them."""
    after = detached_copy(bn)
    mean, var = after.running_mean.double(), after.running_var.double()
    torch.nn.functional.batch_norm(raw, mean, var, training=True, momentum=bn.momentum)
    return mean, var


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_running_statistics_of_both_batch_norms(grad: bool) -> None:
    """The variance unbiased, by `momentum`, in place, with or without autograd."""
    case = case_named("stride_2_keras_odd_map")
    x, weight = make_tensor(case.shape), make_weight(case).requires_grad_(grad)
    input_bn, bn = (make_batch_norm(case.channels, training=True) for _ in range(2))
    z = oracle.batch_norm_act(x, input_bn)
    expected = (
        expected_running(input_bn, x.double()),
        expected_running(bn, oracle.convolution(z, weight, case).detach()),
    )
    call_block(x, input_bn, weight, bn, make_pointwise_weight(case.channels), case)
    for norm, (mean, var) in zip((input_bn, bn), expected, strict=True):
        assert_values(norm.running_mean, mean, torch.float32, scale=5.0)
        assert_values(norm.running_var, var, torch.float32, scale=25.0)


def test_running_statistics_stay_in_eval() -> None:
    case = case_named("channels_9")
    bn = make_batch_norm(case.channels, training=False)
    before = detached_copy(bn)
    call_unit(make_tensor(case.shape).requires_grad_(), make_weight(case), bn, case)
    assert torch.equal(bn.running_mean, before.running_mean)
    assert torch.equal(bn.running_var, before.running_var)


def test_batch_norm_without_parameters_or_running_statistics() -> None:
    case = case_named("channels_9")
    x, weight = make_tensor(case.shape).requires_grad_(), make_weight(case)
    bare = BatchNorm(None, None, None, None, training=True, eps=1e-3)
    ones = bare._replace(weight=torch.ones(9), bias=torch.zeros(9))
    pointwise = make_pointwise_weight(9)
    actual = call_block(x, bare, weight, bare, pointwise, case).tensor
    expected = oracle.block(x, ones, weight, ones, pointwise, case)
    assert_values(actual, expected, torch.float32, scale=10.0)
    grad = torch.randn(actual.shape)
    (gradient,) = torch.autograd.grad(actual, x, grad)
    (exact,) = torch.autograd.grad(expected, x, grad.double())
    assert_values(gradient, exact.double(), torch.float32, scale=10.0)
    shift_only = bare._replace(bias=torch.full((9,), 3.0))
    torch.testing.assert_close(
        functional.bn_relu(x, **shift_only.arguments),
        functional.bn_relu(x, **ones._replace(bias=shift_only.bias).arguments),
    )


@over_modes
@pytest.mark.parametrize(
    "wanted", [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (0, 6), (1, 2), (0, 1), (2, 3)]
)
def test_each_subset_of_gradients(wanted: tuple[int, ...], training: bool) -> None:
    """A gradient does not depend on which others are asked for; the others stay None."""
    case = case_named("stride_2_odd_map")
    input_bn, bn = (make_batch_norm(case.channels, training=training) for _ in range(2))
    x, weight = make_tensor(case.shape), make_weight(case)
    pointwise = make_pointwise_weight(case.channels)
    tensors = [x, weight, pointwise, bn.weight, bn.bias, input_bn.weight, input_bn.bias]

    def run(chosen: Sequence[int]) -> list[Tensor | None]:
        leaves = [v.detach().clone().requires_grad_(i in chosen) for i, v in enumerate(tensors)]
        after, before = detached_copy(bn), detached_copy(input_bn)
        after = after._replace(weight=leaves[3], bias=leaves[4])
        before = before._replace(weight=leaves[5], bias=leaves[6])
        output = call_block(leaves[0], before, leaves[1], after, leaves[2], case).tensor
        (output * torch.arange(output.numel()).view(output.shape).cos()).sum().backward()
        return [leaf.grad for leaf in leaves]

    everything, some = run(range(7)), run(wanted)
    for i in range(7):
        if i in wanted:
            torch.testing.assert_close(some[i], everything[i], rtol=1e-6, atol=1e-5)
        else:
            assert some[i] is None


@over_modes
def test_with_and_without_autograd_agree(training: bool) -> None:
    """Eval without gradients takes one fused pass, which rounds once less."""
    case = case_named("kernel_5")
    bn = make_batch_norm(case.channels, training=training)
    x, weight = make_tensor(case.shape), make_weight(case)
    recorded = call_unit(x.requires_grad_(), weight, detached_copy(bn), case)
    with torch.no_grad():
        plain = call_unit(x, weight, detached_copy(bn), case)
    with torch.inference_mode():
        inferred = call_unit(x, weight, detached_copy(bn), case)
    assert recorded.requires_grad
    assert not plain.requires_grad
    assert torch.equal(plain, inferred)
    torch.testing.assert_close(plain, recorded.detach(), rtol=1e-5, atol=1e-5)


@over_modes
@pytest.mark.parametrize("unit", ["depthwise", "block", "bn_relu"])
def test_empty_batch(unit: str, training: bool) -> None:
    """No images: no values, zero gradients, and running statistics that stay finite."""
    case = case_named("empty_batch")
    bn = make_batch_norm(case.channels, training=training)
    x, weight = make_tensor(case.shape).requires_grad_(), make_weight(case).requires_grad_()
    if unit == "bn_relu":
        output = functional.bn_relu(x, **bn.arguments)
    elif unit == "block":
        output = call_block(x, bn, weight, bn, make_pointwise_weight(8)[:8], case).tensor
    else:
        output = call_unit(x, weight, bn, case)
    output.sum().backward()
    assert output.shape == x.shape
    assert x.grad is not None
    assert unit == "bn_relu" or (weight.grad == 0).all()
    assert bn.running_mean.isfinite().all()
    assert bn.running_var.isfinite().all()


def test_statistics_passed_from_block_to_block() -> None:
    """A unit that is given its input's statistics does as one that has to count them."""
    case = case_named("channels_17")
    bn, input_bn = (make_batch_norm(17, training=True) for _ in range(2))
    x, weight = make_tensor(case.shape).requires_grad_(), make_weight(case)
    pointwise = make_pointwise_weight(17)[:17]
    first = call_block(x, input_bn, weight, bn, pointwise, case, statistics=True)
    assert first.statistics is not None
    stored = first.tensor.detach().double()
    assert_values(first.mean, stored.mean((0, 2, 3)), torch.float32, scale=10.0)
    assert_values(first.var, stored.var((0, 2, 3), correction=0), torch.float32, scale=100.0)
    counted = functional.bn_relu(first.tensor, **detached_copy(bn).arguments)
    given = functional.bn_relu(
        first.tensor, **detached_copy(bn).arguments, statistics=first.statistics
    )
    torch.testing.assert_close(given, counted)
    assert call_block(x, input_bn, weight, bn, pointwise, case).statistics is None


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_pointwise_conv(layout: str) -> None:
    x = make_tensor((2, 17, 5, 6), layout).requires_grad_()
    weight = make_pointwise_weight(17).requires_grad_()
    output, mean, var = functional.pointwise_conv(x, weight, statistics=True)
    expected = torch.nn.functional.conv2d(x.double(), weight.double())
    assert_values(output.detach(), expected.detach(), torch.float32, scale=10.0)
    assert_values(mean, expected.detach().mean((0, 2, 3)), torch.float32, scale=10.0)
    var_exact = expected.detach().var((0, 2, 3), correction=0)
    assert_values(var, var_exact, torch.float32, scale=100.0)
    grad = torch.randn(output.shape)
    gradients = torch.autograd.grad(output, (x, weight), grad)
    exact = torch.autograd.grad(expected, (x, weight), grad.double())
    for gradient, reference in zip(gradients, exact, strict=True):
        assert_values(gradient, reference.double(), torch.float32, scale=20.0)
