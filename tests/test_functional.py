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
from mobilenet_ext.functional import BatchNorm

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


HOSTILE_CASES = (
    "smaller_than_kernel", "odd_map", "channels_1", "channels_9", "stride_2_keras_odd_map",
    "stride_2_even_map", "kernel_7", "dilation_2_stride_2", "bands", "image_groups", "contiguous",
    "mixed_layouts", "sliced", "transposed", "expanded_batch", "expanded_all", "misaligned",
)  # fmt: skip


@over_cases(HOSTILE_CASES)
@over_modes
def test_depthwise_conv_bn_relu(case: ConvCase, training: bool) -> None:
    check_unit(case, torch.float32, training=training)


@over_dtypes
@over_cases(FEW_CASES)
def test_every_dtype(case: ConvCase, dtype: torch.dtype) -> None:
    check_unit(case, dtype, training=True)
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


def test_running_statistics_stay_in_eval() -> None:
    case = case_named("channels_9")
    bn = make_batch_norm(case.channels, training=False)
    before = detached_copy(bn)
    call_unit(make_tensor(case.shape).requires_grad_(), make_weight(case), bn, case)
    assert torch.equal(bn.running_mean, before.running_mean)
    assert torch.equal(bn.running_var, before.running_var)


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
@pytest.mark.parametrize("unit", ["depthwise", "bn_relu"])
def test_empty_batch(unit: str, training: bool) -> None:
    """No images: no values, zero gradients, and running statistics that stay finite."""
    case = case_named("empty_batch")
    bn = make_batch_norm(case.channels, training=training)
    x, weight = make_tensor(case.shape).requires_grad_(), make_weight(case).requires_grad_()
    if unit == "bn_relu":
        output = functional.bn_relu(x, **bn.arguments)
    else:
        output = call_unit(x, weight, bn, case)
    output.sum().backward()
    assert output.shape == x.shape
    assert x.grad is not None
    assert unit == "bn_relu" or (weight.grad == 0).all()
    assert bn.running_mean.isfinite().all()
    assert bn.running_var.isfinite().all()
