"""The block unit and the pointwise convolution: values, gradients, statistics, by the oracle."""

from collections.abc import Sequence

import oracle
import pytest
import torch
from cases import FEW_CASES, ConvCase, case_named, make_tensor, make_weight, over_cases, over_dtypes
from oracle import assert_values
from test_functional import (
    HOSTILE_CASES,
    check_gradients,
    detached_copy,
    expected_running,
    make_batch_norm,
    over_modes,
)
from torch import Tensor

from mobilenet_ext import chain, functional
from mobilenet_ext.functional import BatchNorm, RawMap


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


@over_cases(HOSTILE_CASES)
@over_modes
def test_block_unit(case: ConvCase, training: bool) -> None:
    check_block(case, torch.float32, training=training)


@over_cases(HOSTILE_CASES)
@over_modes
def test_block_step_by_step(
    case: ConvCase, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a process group, and on devices that have no op for a whole block."""
    monkeypatch.setattr(chain, "is_one_op", lambda *_: False)
    check_block(case, torch.float32, training=training)


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


@pytest.mark.parametrize("one_op", [True, False], ids=["one_op", "step_by_step"])
@over_modes
@pytest.mark.parametrize(
    "wanted", [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (0, 6), (1, 2), (0, 1), (2, 3)]
)
def test_each_subset_of_gradients(
    wanted: tuple[int, ...], training: bool, one_op: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient does not depend on which others are asked for; the others stay None."""
    if not one_op:
        monkeypatch.setattr(chain, "is_one_op", lambda *_: False)
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


@over_dtypes
@over_cases(FEW_CASES)
def test_every_dtype(case: ConvCase, dtype: torch.dtype) -> None:
    check_block(case, dtype, training=True)


@over_modes
def test_empty_batch(training: bool) -> None:
    case = case_named("empty_batch")
    bn = make_batch_norm(case.channels, training=training)
    x, weight = make_tensor(case.shape).requires_grad_(), make_weight(case).requires_grad_()
    pointwise = make_pointwise_weight(8).requires_grad_()
    call_block(x, bn, weight, bn, pointwise, case).tensor.sum().backward()
    for leaf in (x, weight, pointwise):
        assert (leaf.grad == 0).all()
    assert bn.running_mean.isfinite().all()
