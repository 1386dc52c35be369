"""depthwise_conv: values, statistics, prologue, epilogue, in every layout and dtype."""

import oracle
import pytest
import torch
from cases import (
    ACTIVATIONS,
    FEW_CASES,
    ConvCase,
    case_named,
    make_tensor,
    over_cases,
    over_dtypes,
)
from conv_checks import NOTHING, check_forward, magnitude
from implementations import Ops
from oracle import assert_values
from samples import ScaleShiftAct, forward_arguments, make_map
from torch import Tensor
from torch.nn import functional as F

over_activations = pytest.mark.parametrize("activation", ACTIVATIONS)


@over_cases()
def test_raw_output_and_its_statistics(ops: Ops, case: ConvCase) -> None:
    check_forward(ops, case, torch.float32, prologue=NOTHING, epilogue=NOTHING)


@over_cases()
def test_prologue_and_epilogue(ops: Ops, case: ConvCase) -> None:
    check_forward(ops, case, torch.float32, prologue=case.activation, epilogue=case.activation)


@over_cases(FEW_CASES)
@over_dtypes
def test_every_dtype(ops: Ops, case: ConvCase, dtype: torch.dtype) -> None:
    check_forward(ops, case, dtype, prologue=case.activation, epilogue=NOTHING)
    check_forward(ops, case, dtype, prologue=case.activation, epilogue=case.activation)


@over_dtypes
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("activation", [NOTHING, *ACTIVATIONS])
def test_every_prologue_of_whole_vectors(
    ops: Ops, dtype: torch.dtype, stride: int, activation: str | None
) -> None:
    """Kernels are specialised for each of these."""
    case = ConvCase("", 2, 8, 7, 6, stride=stride)
    check_forward(ops, case, dtype, prologue=activation, epilogue=NOTHING)
    check_forward(ops, case, dtype, prologue=activation, epilogue="relu6")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_width_and_overlap(ops: Ops, stride: int, dtype: torch.dtype) -> None:
    """Rows are cut into strips of 8, 4, 2 and 1 outputs, and into what reaches over an edge."""
    for width in range(1, 24):
        for padding in [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (2, 2, 1, 0), (2, 0, 2, 2)]:
            if width + padding[0] + padding[1] < 3:
                continue
            case = ConvCase("", 1, 16, 4, width, stride=stride, padding=padding)
            check_forward(ops, case, dtype, prologue=NOTHING, epilogue=NOTHING)
            check_forward(ops, case, dtype, prologue=NOTHING, epilogue="relu6")
            check_forward(ops, case, dtype, prologue="relu", epilogue=NOTHING)


def test_bands_and_groups_of_images_in_place(ops: Ops) -> None:
    """Items that begin below a map's first row, and items of several images."""
    for case in (ConvCase("", 3, 32, 40, 48), ConvCase("", 40, 16, 12, 40)):
        check_forward(ops, case, torch.float32, prologue=NOTHING, epilogue=NOTHING)
        check_forward(ops, case, torch.float32, prologue=NOTHING, epilogue="relu6")


@over_dtypes
@pytest.mark.parametrize("activation", [NOTHING, *ACTIVATIONS])
def test_every_prologue_of_vectors_of_pixels(
    ops: Ops, dtype: torch.dtype, activation: str | None
) -> None:
    """Kernels are specialised for stride and padding."""
    for stride, padding in [(1, (1, 1, 1, 1)), (2, (1, 1, 1, 1)), (2, (0, 1, 0, 1))]:
        case = ConvCase("", 2, 3, 7, 16, stride=stride, padding=padding, layout="contiguous")
        check_forward(ops, case, dtype, prologue=activation, epilogue=NOTHING)
        check_forward(ops, case, dtype, prologue=activation, epilogue="relu6")


@over_activations
def test_every_activation_before_and_after(ops: Ops, activation: str | None) -> None:
    case = case_named("channels_33")
    check_forward(ops, case, torch.float32, prologue=activation, epilogue=NOTHING)
    check_forward(ops, case, torch.float32, prologue=NOTHING, epilogue=activation)
    check_forward(ops, case, torch.float32, prologue=activation, epilogue=activation)


@pytest.mark.parametrize(
    "case",
    [ConvCase("", 1, 8, 5, 5), ConvCase("", 1, 8, 5, 8, layout="contiguous")],
    ids=["channels_last", "contiguous"],
)
def test_padding_is_zero_after_the_prologue(ops: Ops, case: ConvCase) -> None:
    """A padded tap counts 0 and not relu6(shift): nine taps inside, four in the corner."""
    ones = torch.ones(8)
    prologue = ScaleShiftAct(ones, 3 * ones, "relu6")
    arguments = forward_arguments(case, prologue=prologue)
    arguments["input"].zero_()
    arguments["weight"].fill_(1)
    output = ops.depthwise_conv(**arguments)[0]
    assert (output[0, :, 2, 2] == 27).all()
    assert (output[0, :, 0, 0] == 12).all()
    assert (output[0, :, 4, 2] == 18).all()


@pytest.mark.parametrize("size", [(9, 9), (10, 10), (9, 10)])
@pytest.mark.parametrize("stride", [1, 2])
def test_keras_padding_is_one_row_and_column_at_the_end(
    ops: Ops, size: tuple[int, int], stride: int
) -> None:
    case = ConvCase("", 2, 8, *size, stride=stride, padding=(0, 1, 0, 1))
    arguments = forward_arguments(case)
    x = torch.zeros(2, 8, size[0] + 1, size[1] + 1, dtype=torch.float64)
    x[:, :, :-1, :-1] = arguments["input"]
    expected = F.conv2d(x, arguments["weight"].double(), stride=stride, groups=8)
    scale = magnitude(arguments["input"].double(), arguments["weight"].double(), case)
    assert_values(ops.depthwise_conv(**arguments)[0], expected, torch.float32, scale=scale)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_nan_and_infinity_stay_where_they_belong(
    ops: Ops, activation: str | None, layout: str
) -> None:
    case = ConvCase("", 1, 19, 9, 12, layout=layout)
    epilogue = ScaleShiftAct(torch.full((19,), 2.0), torch.full((19,), 0.5), activation)
    arguments = forward_arguments(case, epilogue=epilogue)
    x = arguments["input"]
    x[0, 0, 0, 0] = x[0, 18, 4, 5] = torch.nan
    x[0, 7, 2, 2] = x[0, 16, 8, 11] = torch.inf
    x[0, 8, 3, 3] = -torch.inf
    x[0, 1, 4, 4], x[0, 1, 4, 6] = torch.inf, -torch.inf  # some taps see both
    raw = F.conv2d(x.double(), arguments["weight"].double(), padding=1, groups=19)
    assert raw.isnan().sum() > 9
    assert raw.isinf().sum() > 18
    assert_values(ops.depthwise_conv(**arguments)[0], epilogue(raw), torch.float32, scale=100.0)


def test_prologue_propagates_nan_and_clips_infinity(ops: Ops) -> None:
    case = ConvCase("", 1, 9, 5, 5)
    prologue = ScaleShiftAct(torch.ones(9), torch.zeros(9), "relu6")
    arguments = forward_arguments(case, prologue=prologue)
    x = arguments["input"]
    x[0, 0, 2, 2], x[0, 4, 2, 2], x[0, 8, 2, 2] = torch.nan, torch.inf, -torch.inf
    expected = oracle.convolution(prologue(x), arguments["weight"], case)
    assert expected.isnan().sum() == 9
    assert not expected.isinf().any()
    assert_values(ops.depthwise_conv(**arguments)[0], expected, torch.float32, scale=60.0)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_statistics_of_data_far_from_zero(ops: Ops, layout: str) -> None:
    """|mean| is 2,000 standard deviations: a plain sum of squares would lose the variance."""
    case = ConvCase("", 4, 24, 28, 28, padding=(0, 0, 0, 0), layout=layout)
    arguments = forward_arguments(case, statistics=True)
    arguments["input"] += 6000.0
    arguments["weight"].fill_(1 / 9)
    output, mean, var = ops.depthwise_conv(**arguments)
    stored = output.double()
    torch.testing.assert_close(mean.double(), stored.mean((0, 2, 3)), rtol=1e-6, atol=0)
    expected = stored.var((0, 2, 3), correction=0)
    torch.testing.assert_close(var.double(), expected, rtol=1e-4, atol=0)


def test_nan_spoils_the_statistics_of_its_own_channel_only(ops: Ops) -> None:
    arguments = forward_arguments(case_named("channels_17"), statistics=True)
    arguments["input"][1, 5, 2, 3] = torch.nan
    _, mean, var = ops.depthwise_conv(**arguments)
    only = torch.arange(17) == 5
    assert torch.equal(mean.isnan(), only)
    assert torch.equal(var.isnan(), only)


def test_strided_weight_and_vectors(ops: Ops) -> None:
    """A weight that is a view, as `state_dict` slicing or pruning makes them."""
    case = case_named("channels_9")
    arguments = forward_arguments(case)
    arguments["weight"] = torch.randn(3, 3, 1, 18).permute(3, 2, 1, 0)[::2]
    scale, shift = torch.rand(9, 2)[:, 0], torch.rand(1).expand(9)
    epilogue = ScaleShiftAct(scale, shift, None)
    arguments |= epilogue.arguments("output")
    expected = epilogue(oracle.convolution(arguments["input"], arguments["weight"], case))
    assert_values(ops.depthwise_conv(**arguments)[0], expected, torch.float32, scale=20.0)


def test_arguments_are_left_alone(ops: Ops) -> None:
    case = case_named("misaligned")
    prologue = make_map(case.channels, torch.float32, "relu6")
    arguments = forward_arguments(case, prologue=prologue, statistics=True)
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, Tensor)}
    ops.depthwise_conv(**arguments)
    for name, value in before.items():
        assert torch.equal(arguments[name], value), name


def test_large_negative_values_survive_without_activation(ops: Ops) -> None:
    """Activation `None` in the epilogue means the affine map alone."""
    x = make_tensor((1, 8, 4, 4))
    arguments = forward_arguments(ConvCase("", 1, 8, 4, 4, kernel=1, padding=(0, 0, 0, 0)))
    epilogue = ScaleShiftAct(torch.full((8,), -100.0), torch.full((8,), -7.0), None)
    arguments |= {"input": x, "weight": torch.ones(8, 1, 1, 1), **epilogue.arguments("output")}
    torch.testing.assert_close(ops.depthwise_conv(**arguments)[0], x * -100 - 7)
