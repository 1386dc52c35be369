"""pointwise_conv and its backward, on the CPU: elsewhere the device's library multiplies."""

from dataclasses import replace

import oracle
import pytest
import torch
from cases import (
    ACTIVATIONS,
    FEW_POINTWISE,
    POINTWISE,
    ConvCase,
    case_named,
    over_cases,
    over_dtypes,
    pointwise_case,
)
from conv_checks import NOTHING, check_backward, check_forward, check_parts
from implementations import Cpu
from oracle import assert_values
from samples import ScaleShiftAct, forward_arguments, make_backward_sample

ops = Cpu()


@over_cases(POINTWISE)
def test_raw_output_and_its_statistics(case: ConvCase) -> None:
    check_forward(ops, case, torch.float32, prologue=NOTHING, epilogue=NOTHING)


@over_cases(POINTWISE)
def test_prologue_and_epilogue(case: ConvCase) -> None:
    check_forward(ops, case, torch.float32, prologue=case.activation, epilogue=case.activation)
    check_forward(ops, case, torch.float32, prologue=case.activation, epilogue=NOTHING)


@over_cases(FEW_POINTWISE)
@over_dtypes
def test_every_dtype(case: ConvCase, dtype: torch.dtype) -> None:
    check_forward(ops, case, dtype, prologue=case.activation, epilogue=NOTHING)
    check_forward(ops, case, dtype, prologue=NOTHING, epilogue=case.activation)
    check_backward(ops, make_backward_sample(case, dtype))
    check_backward(ops, make_backward_sample(case, dtype, prologue=False, epilogue=False))


@over_cases(POINTWISE)
def test_gradients_between_two_batch_norms(case: ConvCase) -> None:
    check_backward(ops, make_backward_sample(case))


@over_cases(POINTWISE)
def test_gradients_of_the_convolution_alone(case: ConvCase) -> None:
    check_backward(ops, make_backward_sample(case, prologue=False, epilogue=False))


@pytest.mark.parametrize("rows", range(1, 14))
def test_every_register_tile(rows: int) -> None:
    """Pixels are divided into tiles of at most 6 rows (12 with AVX-512) that differ by one."""
    for channels in (8, 40, 72):
        case = pointwise_case("", 1, 8, channels, 1, rows)
        check_forward(ops, case, torch.float32, prologue=NOTHING, epilogue=NOTHING)
        check_backward(ops, make_backward_sample(case))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "options",
    [
        {"prologue": False},
        {"epilogue": False},
        {"raw_terms": False},
        {"sums": False},
        {"need_grad_weight": False},
        {"need_grad_input": False, "sums": False},
        {"need_grad_input": False, "need_grad_weight": False, "sums": False},
        {"need_grad_weight": False, "prologue": False, "raw_terms": False},
    ],
    ids="-".join,
)
def test_parts(activation: str | None, options: dict[str, bool]) -> None:
    for name in ("pointwise_17_to_15", "pointwise_16_to_16"):
        check_parts(ops, replace(case_named(name), activation=activation), options)


def test_nan_stays_in_its_pixel() -> None:
    prologue = ScaleShiftAct(torch.ones(17), torch.zeros(17), "relu6")
    arguments = forward_arguments(case_named("pointwise_17_to_15"), prologue=prologue)
    arguments["input"][1, 16, 2, 3] = torch.nan
    output = ops.pointwise_conv(**arguments)[0]
    assert output[1, :, 2, 3].isnan().all()
    assert output.isnan().sum() == 15


def test_statistics_of_data_far_from_zero() -> None:
    """|mean| is 2,000 standard deviations: a plain sum of squares would lose the variance."""
    case = pointwise_case("", 4, 24, 24, 28, 28)
    arguments = forward_arguments(case, statistics=True)
    arguments["input"] += 6000.0
    arguments["weight"].copy_(torch.eye(24).view(24, 24, 1, 1))
    output, mean, var = ops.pointwise_conv(**arguments)
    stored = output.double()
    torch.testing.assert_close(mean.double(), stored.mean((0, 2, 3)), rtol=1e-6, atol=0)
    expected = stored.var((0, 2, 3), correction=0)
    torch.testing.assert_close(var.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
def test_strided_weight(transposed: bool) -> None:
    """A weight that is a view."""
    case = case_named("pointwise_17_to_15")
    arguments = forward_arguments(case)
    weight = torch.randn(34, 30, 1, 1).transpose(0, 1) if transposed else torch.randn(30, 34, 1, 1)
    arguments["weight"] = weight[::2, 1::2]
    expected = oracle.convolution(arguments["input"], arguments["weight"], case)
    assert_values(ops.pointwise_conv(**arguments)[0], expected, torch.float32, scale=30.0)
    sample = make_backward_sample(case)
    changed = replace(sample, arguments=sample.arguments | {"weight": arguments["weight"]})
    check_backward(ops, changed)


def test_same_bits_for_any_number_of_threads(threads: None) -> None:
    for name in ("pointwise_ranges", "pointwise_ranges_and_shares", "pointwise_tiles"):
        case = case_named(name)
        forward = forward_arguments(case, statistics=True)
        backward = make_backward_sample(case).arguments
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                (*ops.pointwise_conv(**forward), *ops.pointwise_conv_backward(**backward))
            )
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))
