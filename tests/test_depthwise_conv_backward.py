"""depthwise_conv_backward: all four gradients, against autograd through the float64 oracle."""

from dataclasses import replace

import pytest
import torch
from cases import FEW_CASES, ConvCase, case_named, over_cases, over_dtypes
from conv_checks import check_backward, check_parts
from implementations import Ops
from samples import make_backward_sample
from torch import Tensor


@over_cases()
def test_between_two_batch_norms(ops: Ops, case: ConvCase) -> None:
    """The convolution of a block in training: everything at once."""
    check_backward(ops, make_backward_sample(case))


@over_cases()
def test_convolution_alone(ops: Ops, case: ConvCase) -> None:
    check_backward(ops, make_backward_sample(case, prologue=False, epilogue=False))


@over_cases(FEW_CASES)
@over_dtypes
def test_every_dtype(ops: Ops, case: ConvCase, dtype: torch.dtype) -> None:
    check_backward(ops, make_backward_sample(case, dtype))


@over_dtypes
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"epilogue": False}], ids=["", "no_epilogue"])
def test_whole_vectors(ops: Ops, dtype: torch.dtype, stride: int, options: dict[str, bool]) -> None:
    """Kernels are specialised for each of these."""
    for height, width, padding in [(7, 10, (1, 1, 1, 1)), (10, 7, (0, 1, 0, 1))]:
        case = ConvCase("", 2, 8, height, width, stride=stride, padding=padding)
        check_backward(ops, make_backward_sample(case, dtype, **options))


@over_dtypes
@pytest.mark.parametrize("options", [{}, {"epilogue": False}], ids=["", "no_epilogue"])
def test_whole_vectors_of_pixels(ops: Ops, dtype: torch.dtype, options: dict[str, bool]) -> None:
    """Kernels are specialised for each of these, and for rows that are no vectors."""
    for stride, padding in [(1, (1, 1, 1, 1)), (2, (1, 1, 1, 1)), (2, (0, 1, 0, 1))]:
        for width in (16, 7):
            case = ConvCase(
                "", 2, 3, 7, width, stride=stride, padding=padding,
                layout="contiguous", grad_layout="contiguous",
            )  # fmt: skip
            check_backward(ops, make_backward_sample(case, dtype, **options))


def test_every_width_and_overlap(ops: Ops) -> None:
    """Rows are cut into strips of 8, 4, 2 and 1 outputs."""
    for width in range(1, 20):
        for padding in [(1, 1, 1, 1), (0, 1, 0, 1), (2, 2, 1, 0), (2, 0, 2, 2)]:
            if width + padding[0] + padding[1] < 3:
                continue
            for options in ({}, {"prologue": False}):
                case = ConvCase("", 1, 16, 4, width, padding=padding)
                check_backward(ops, make_backward_sample(case, **options))


@pytest.mark.parametrize("stride", [1, 2])
def test_uneven_padding_of_whole_vectors(ops: Ops, stride: int) -> None:
    for padding in [(0, 0, 0, 0), (4, 0, 0, 5), (0, 3, 5, 0), (3, 2, 2, 3), (2, 2, 1, 2)]:
        for height, width in [(3, 5), (4, 4), (9, 3)]:
            case = ConvCase("", 2, 12, height, width, stride=stride, padding=padding)
            check_backward(ops, make_backward_sample(case))


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize(
    "options",
    [
        {"prologue": False},
        {"epilogue": False},
        {"raw_terms": False},  # frozen BatchNorm after
        {"sums": False},  # frozen BatchNorm before
        {"need_grad_weight": False},
        {"need_grad_input": False, "sums": False},
        {"need_grad_input": False, "prologue": False},
        {"need_grad_weight": False, "prologue": False, "raw_terms": False},
    ],
    ids="-".join,
)
def test_parts(ops: Ops, activation: str | None, options: dict[str, bool]) -> None:
    check_parts(ops, replace(case_named("stride_2_odd_map"), activation=activation), options)
    for stride in (1, 2):
        case = ConvCase("", 2, 8, 9, 11, stride=stride, activation=activation)
        check_parts(ops, case, options)


def test_gradient_map_without_epilogue(ops: Ops) -> None:
    """BatchNorm without an activation: `output` is given, its scale and shift are not."""
    sample = make_backward_sample(case_named("channels_17"))
    arguments = sample.arguments | {
        "output_scale": None,
        "output_shift": None,
        "output_activation": 0,
    }
    check_backward(ops, replace(sample, arguments=arguments, epilogue=None))


def test_gradient_is_zero_exactly_at_the_kinks(ops: Ops) -> None:
    """As torch has it: relu6 lets nothing through at 0 and at 6, on either side of the conv."""
    case = ConvCase("", 1, 8, 4, 4, kernel=1, padding=(0, 0, 0, 0))
    sample = make_backward_sample(case, raw_terms=False)
    values = torch.tensor([0.0, 6.0, 3.0, -1.0, 7.0, 5.5, 0.5, -0.0])
    kinks = values.view(1, 8, 1, 1).expand(1, 8, 4, 4).contiguous()
    ones, zeros = torch.ones(8), torch.zeros(8)
    sample.arguments.update(
        input=kinks, output=kinks, input_scale=ones, output_scale=ones, grad_scale=ones,
        input_shift=zeros, output_shift=zeros, weight=torch.ones(8, 1, 1, 1), input_mean=zeros,
        grad_output=torch.ones(1, 8, 4, 4),
    )  # fmt: skip
    grad_input, _, grad_sum, _ = ops.depthwise_conv_backward(**sample.arguments)
    inside = (values > 0) & (values < 6)
    assert torch.equal(grad_input, inside.float().view(1, 8, 1, 1).expand(1, 8, 4, 4))
    assert torch.equal(grad_sum, 16 * inside.float())


def test_nan_in_the_gradient_reaches_only_its_taps(ops: Ops) -> None:
    sample = make_backward_sample(case_named("channels_17"), epilogue=False, prologue=False)
    sample.arguments["grad_output"][1, 16, 2, 2] = torch.nan
    grad_input, grad_weight, _, _ = ops.depthwise_conv_backward(**sample.arguments)
    expected = torch.zeros(2, 17, 5, 6, dtype=torch.bool)
    expected[1, 16, 1:4, 1:4] = True
    assert torch.equal(grad_input.isnan(), expected)
    assert torch.equal(grad_weight.isnan().flatten(1).all(1), torch.arange(17) == 16)
    assert not grad_weight[:16].isnan().any()


def test_nan_under_the_activation_lets_the_gradient_through(ops: Ops) -> None:
    """The mask is zero where y is known to be outside, and nowhere else."""
    case = replace(case_named("channels_9"), activation="relu6")
    sample = make_backward_sample(case, epilogue=False, need_grad_weight=False, sums=False)
    sample.arguments["input"][0, 3, 2, 2] = torch.nan
    grad_input = check_backward(ops, sample)[0]
    assert grad_input.isfinite().all()
    assert grad_input[0, 3, 2, 2] != 0


def test_arguments_are_left_alone(ops: Ops) -> None:
    sample = make_backward_sample(case_named("misaligned"))
    before = {k: v.clone() for k, v in sample.arguments.items() if isinstance(v, Tensor)}
    ops.depthwise_conv_backward(**sample.arguments)
    for name, value in before.items():
        assert torch.equal(sample.arguments[name], value), name
