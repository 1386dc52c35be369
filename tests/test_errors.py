"""Every refusal says op, argument, expected and got; nothing wrong is computed instead."""

import re
from typing import Any

import pytest
import torch
from cases import case_named
from samples import make_map
from test_op_contract import arguments_of
from torch import Tensor

from mobilenet_ext import functional

ops = torch.ops.mobilenet_ext
CASE = case_named("channels_8")  # input [2, 8, 5, 6], weight [8, 1, 3, 3], output [2, 8, 5, 6]


def expect(op: str, message: str, **changes: Any) -> None:
    """Calling `op` with valid arguments but for the `changes` must raise `op: message`."""
    arguments = arguments_of(op, CASE) | changes
    with pytest.raises(RuntimeError) as error:
        getattr(ops, op)(**arguments)
    assert f"{op}: {message}" in str(error.value)


over_conv_ops = pytest.mark.parametrize("op", ["depthwise_conv", "depthwise_conv_backward"])
MAP_OPS = ["depthwise_conv", "depthwise_conv_backward", "batch_norm_statistics", "scale_shift_act",
           "scale_shift_act_backward_reduce", "scale_shift_act_backward"]  # fmt: skip
BACKWARD_OPS = [op for op in MAP_OPS if "backward" in op]


@pytest.mark.parametrize("op", MAP_OPS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(8, 5, 6), "input must be [N, C, H, W], got [8, 5, 6]"),
        (torch.tensor(1.0), "input must be [N, C, H, W], got []"),
        (torch.zeros(2, 0, 5, 6), "input must be [N, C, H, W] with C, H, W >= 1, got [2, 0, 5, 6]"),
        (torch.zeros(2, 8, 0, 6), "input must be [N, C, H, W] with C, H, W >= 1, got [2, 8, 0, 6]"),
        (
            torch.zeros(2, 8, 5, 6, dtype=torch.int32),
            "input must be float32, float64, bfloat16 or float16, got Int",
        ),
        (
            torch.zeros(2, 8, 5, 6, dtype=torch.complex64),
            "input must be float32, float64, bfloat16 or float16, got ComplexFloat",
        ),
    ],
    ids=["three_dims", "scalar", "no_channels", "no_rows", "integers", "complex"],
)
def test_input(op: str, value: Tensor, message: str) -> None:
    expect(op, message, input=value)


@over_conv_ops
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.zeros(8, 3, 3), "[8, 3, 3]"),
        (torch.zeros(7, 1, 3, 3), "[7, 1, 3, 3]"),
        (torch.zeros(16, 1, 3, 3), "[16, 1, 3, 3]"),  # depth multiplier 2 is Python's business
        (torch.zeros(8, 8, 3, 3), "[8, 8, 3, 3]"),
        (torch.zeros(8, 1, 2, 3), "[8, 1, 2, 3]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weight_shape(op: str, value: Tensor, got: str) -> None:
    expect(op, f"weight must be [C, 1, K, K] = [8, 1, 3, 3], got {got}", weight=value)


@over_conv_ops
def test_weight_without_taps(op: str) -> None:
    message = "weight must be [C, 1, K, K] = [8, 1, 0, 0], got [8, 1, 0, 0]"
    expect(op, message, weight=torch.zeros(8, 1, 0, 0))


@over_conv_ops
def test_weight_dtype(op: str) -> None:
    weight = torch.zeros(8, 1, 3, 3, dtype=torch.bfloat16)
    expect(op, "weight must be float32 like the input, got bfloat16", weight=weight)


@over_conv_ops
@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("stride", 0, 1),
        ("stride", -1, 1),
        ("stride", 2**62, 1),
        ("dilation", 0, 1),
        ("dilation", 2**63 - 1, 1),
        ("pad_left", -1, 0),
        ("pad_right", -1, 0),
        ("pad_top", -1, 0),
        ("pad_bottom", 2**62, 0),
    ],
)
def test_geometry_out_of_range(op: str, name: str, value: int, least: int) -> None:
    expect(op, f"{name} must be in [{least}, 16777216], got {value}", **{name: value})


@over_conv_ops
def test_kernel_larger_than_the_padded_map(op: str) -> None:
    message = "padded input must be at least as large as the dilated kernel, 7 x 7, got "
    expect(op, message + "7 x 6", dilation=3, pad_left=0, pad_right=0)
    expect(op, message + "6 x 8", dilation=3, pad_top=0)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("depthwise_conv", "input_scale"),
        ("depthwise_conv", "input_shift"),
        *(("depthwise_conv_backward", name) for name in (
            "output_scale", "output_shift", "grad_scale", "raw_scale", "raw_shift", "input_scale",
            "input_shift", "input_mean",
        )),
        ("scale_shift_act", "scale"),
        ("scale_shift_act", "shift"),
        *(("scale_shift_act_backward_reduce", name) for name in ("scale", "shift", "mean")),
        *(("scale_shift_act_backward", name) for name in (
            "scale", "shift", "grad_scale", "raw_scale", "raw_shift",
        )),
    ],
)  # fmt: skip
def test_vectors(op: str, name: str) -> None:
    expect(op, f"{name} must be [C] = [8], got [7]", **{name: torch.zeros(7)})
    expect(op, f"{name} must be [C] = [8], got [8, 1, 1]", **{name: torch.zeros(8, 1, 1)})
    message = f"{name} must be float32 for a float32 input, got float64"
    expect(op, message, **{name: torch.zeros(8, dtype=torch.float64)})


def test_epilogue_vectors() -> None:
    epilogue = make_map(8, torch.float32, "relu").arguments("output") | {"statistics": False}
    for name in ("output_scale", "output_shift"):
        changes = epilogue | {name: torch.zeros(9)}
        expect("depthwise_conv", f"{name} must be [C] = [8], got [9]", **changes)


def test_vectors_of_16_bit_inputs_are_float32() -> None:
    arguments = arguments_of("scale_shift_act", CASE, torch.bfloat16)
    arguments["scale"] = arguments["scale"].bfloat16()
    message = "scale must be float32 for a bfloat16 input, got bfloat16"
    with pytest.raises(RuntimeError, match=message):
        ops.scale_shift_act(**arguments)


@pytest.mark.parametrize(
    ("op", "first", "second"),
    [
        ("depthwise_conv", "input_scale", "input_shift"),
        ("depthwise_conv", "output_scale", "output_shift"),
        ("depthwise_conv_backward", "output", "grad_scale"),
        ("depthwise_conv_backward", "output_scale", "output_shift"),
        ("depthwise_conv_backward", "raw_scale", "raw_shift"),
        ("depthwise_conv_backward", "input_scale", "input_shift"),
        ("scale_shift_act_backward", "scale", "shift"),
        ("scale_shift_act_backward", "raw_scale", "raw_shift"),
    ],
)
def test_arguments_that_go_together(op: str, first: str, second: str) -> None:
    changes: dict[str, Any] = {"statistics": False} if op == "depthwise_conv" else {}
    if first == "output_scale" and op == "depthwise_conv":
        changes |= make_map(8, torch.float32, "relu").arguments("output")
    names = f"{first} and {second} must be given together, got only the "
    expect(op, names + "first", **(changes | {second: None}))
    expect(op, names + "second", **(changes | {first: None}))


def test_statistics_exclude_an_epilogue() -> None:
    epilogue = make_map(8, torch.float32, None).arguments("output")
    message = "statistics must be False with an output_scale, got True"
    expect("depthwise_conv", message, statistics=True, **epilogue)


@pytest.mark.parametrize(
    ("op", "name", "vectors"),
    [
        ("depthwise_conv", "input_activation", ("input_scale", "input_shift")),
        ("depthwise_conv", "output_activation", ("output_scale", "output_shift")),
        ("depthwise_conv_backward", "output_activation", ("output_scale", "output_shift")),
        ("depthwise_conv_backward", "input_activation",
         ("input_scale", "input_shift", "input_mean")),
        ("scale_shift_act_backward", "activation", ("scale", "shift")),
    ],
)  # fmt: skip
def test_activation_codes(op: str, name: str, vectors: tuple[str, ...]) -> None:
    for code in (-1, 3):
        message = f"{name} must be 0 (none), 1 (relu) or 2 (relu6), got {code}"
        expect(op, message, **{name: code})
    changes = dict.fromkeys(vectors) | {name: 2}
    names = f"{vectors[0]} and {vectors[1]}"
    expect(op, f"{name} must be 0 (none) without {names}, got 2", **changes)


@pytest.mark.parametrize("op", ["scale_shift_act", "scale_shift_act_backward_reduce"])
def test_activation_code(op: str) -> None:
    expect(op, "activation must be 0 (none), 1 (relu) or 2 (relu6), got 3", activation=3)


@pytest.mark.parametrize("op", BACKWARD_OPS)
def test_gradient_does_not_fit(op: str) -> None:
    message = "grad_output must be [N, C, H, W] = [2, 8, 5, 6], got "
    expect(op, message + "[2, 8, 6, 5]", grad_output=torch.zeros(2, 8, 6, 5))
    expect(op, message + "[2, 8, 1, 1]", grad_output=torch.zeros(2, 8, 1, 1))
    expect(op, message + "[8, 5, 6]", grad_output=torch.zeros(8, 5, 6))
    grad = torch.zeros(2, 8, 5, 6, dtype=torch.float64)
    expect(op, "grad_output must be float32 like the input, got float64", grad_output=grad)


def test_raw_output_does_not_fit() -> None:
    op = "depthwise_conv_backward"
    message = "output must be [N, C, H, W] = [2, 8, 5, 6], got [1, 8, 5, 6]"
    expect(op, message, output=torch.zeros(1, 8, 5, 6))
    message = "output must be given with an output_scale or a raw_scale, got None"
    expect(op, message, output=None, grad_scale=None)
    message = "input_mean must be None without an input_scale and need_grad_input, got a tensor"
    expect(op, message, need_grad_input=False)
    expect(op, message, input_scale=None, input_shift=None, input_activation=0)


@pytest.mark.parametrize(
    ("op", "first", "others"),
    [
        ("batch_norm_affine", "mean", ("var", "weight", "bias")),
        ("batch_norm_gradient_map", "grad_sum", ("grad_dot", "scale", "mean", "invstd")),
    ],
)
def test_vectors_alone(op: str, first: str, others: tuple[str, ...]) -> None:
    message = f"{first} must be [C] with C >= 1, got "
    expect(op, message + "[2, 8]", **{first: torch.zeros(2, 8)})
    expect(op, message + "[0]", **{first: torch.zeros(0)})
    halves = torch.zeros(8, dtype=torch.float16)
    expect(op, f"{first} must be float32 or float64, got float16", **{first: halves})
    for name in others:
        expect(op, f"{name} must be [C] = [8] like {first}, got [7]", **{name: torch.zeros(7)})
        doubles = torch.zeros(8, dtype=torch.float64)
        expect(op, f"{name} must be float32 like {first}, got float64", **{name: doubles})


def test_counts() -> None:
    message = "count must be 0 (no unbiased_var) or at least 2, got "
    expect("batch_norm_affine", message + "1", count=1)
    expect("batch_norm_affine", message + "-1", count=-1)
    expect("batch_norm_gradient_map", "count must be at least 0, got -1", count=-1)


VECTORS = {"bn_weight": torch.ones(8), "bn_bias": torch.zeros(8),
           "running_mean": torch.zeros(8), "running_var": torch.ones(8)}  # fmt: skip
PADDINGS = '"same", an int or (left, right, top, bottom), none of them negative'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 0}, "stride must be an int, at least 1, got 0"),
        ({"stride": (2, 2)}, "stride must be an int, at least 1, got (2, 2)"),
        ({"dilation": 0}, "dilation must be an int, at least 1, got 0"),
        ({"dilation": (1, 1)}, "dilation must be an int, at least 1, got (1, 1)"),
        ({"padding": -1}, f"padding must be {PADDINGS}, got -1"),
        ({"padding": (1, 1)}, f"padding must be {PADDINGS}, got (1, 1)"),
        ({"padding": "keras"}, f"padding must be {PADDINGS}, got 'keras'"),
        ({"eps": -1.0}, "eps must be at least 0, got -1.0"),
        ({"activation": "silu"}, "activation must be in [None, 'relu', 'relu6'], got 'silu'"),
        ({"running_mean": None}, "running_mean must be given unless training, got None"),
        ({"bn_bias": torch.zeros(7)}, "bias must be [C] = [8], got [7]"),
        ({"input": torch.zeros(8, 5, 6)}, "input must be [N, C, H, W], got [8, 5, 6]"),
        (
            {"weight": torch.zeros(12, 1, 3, 3)},
            "weight must be [C * multiplier, 1, K, K] with C = 8, got [12, 1, 3, 3]",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_functional_arguments(changes: dict[str, Any], message: str) -> None:
    arguments = {"input": torch.zeros(2, 8, 5, 6), "weight": torch.zeros(8, 1, 3, 3)} | VECTORS
    with pytest.raises(ValueError, match=f"^depthwise_conv_bn_relu: .*{re.escape(message)}$"):
        functional.depthwise_conv_bn_relu(**(arguments | changes))


def test_ints_of_numpy_are_ints() -> None:
    numpy = pytest.importorskip("numpy")
    arguments = {"input": torch.zeros(2, 8, 5, 6), "weight": torch.zeros(8, 1, 3, 3)} | VECTORS
    output = functional.depthwise_conv_bn_relu(**arguments, stride=numpy.int64(2))
    assert output.shape == (2, 8, 3, 3)


def test_one_value_per_channel_in_training() -> None:
    """Torch refuses it too: the variance of one value is no variance."""
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        functional.bn_relu(torch.zeros(1, 8, 1, 1), **VECTORS, training=True)
