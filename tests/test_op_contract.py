"""What holds for every op whatever it computes: schemas, fake kernels, memory formats, purity."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import ConvCase, case_named, make_tensor, make_vector, over_cases, vector_dtype
from implementations import Ops
from samples import (
    blocks_arguments,
    blocks_backward_arguments,
    forward_arguments,
    make_backward_sample,
    make_map,
)
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.library import opcheck

from mobilenet_ext import reference_ops

ops = torch.ops.mobilenet_ext

OP_NAMES = (
    "depthwise_conv",
    "depthwise_conv_backward",
    "pointwise_conv",
    "pointwise_conv_backward",
    "separable_convs",
    "separable_convs_backward",
    "image_conv",
    "image_conv_backward",
    "image_patches",
    "batch_norm_statistics",
    "scale_shift_act",
    "scale_shift_act_backward_reduce",
    "scale_shift_act_backward",
    "batch_norm_affine",
    "batch_norm_gradient_map",
)
VECTOR_OPS = OP_NAMES[-2:]
PADS = ("pad_left", "pad_right", "pad_top", "pad_bottom")


def element_wise_arguments(name: str, case: ConvCase, dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of one of the ops without a convolution."""
    x = make_tensor(case.shape, case.layout, dtype)
    grad = make_tensor(case.shape, case.grad_layout, dtype)
    affine = make_map(case.channels, dtype, case.activation)
    mean, a, b, c = (make_vector(case.channels, -1, 1, dtype) for _ in range(4))
    common = {"scale": affine.scale, "shift": affine.shift, "activation": case.code}
    return {
        "image_patches": {
            "input": x, "kernel": case.kernel, "stride": case.stride,
            **dict(zip(PADS, case.padding, strict=True)),
        },
        "batch_norm_statistics": {"input": x},
        "scale_shift_act": {"input": x, **common},
        "scale_shift_act_backward_reduce": {
            "grad_output": grad, "input": x, **common, "mean": mean,
        },
        "scale_shift_act_backward": {
            "grad_output": grad, "input": x, **common,
            "grad_scale": a, "raw_scale": b, "raw_shift": c,
        },
    }[name]  # fmt: skip


def vector_arguments(name: str, channels: int, dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of one of the ops on vectors alone."""
    a, b, c, d = (make_vector(channels, -1, 1, dtype) for _ in range(4))
    positive = make_vector(channels, 0.1, 2, dtype)
    return {
        "batch_norm_affine": {
            "mean": a, "var": positive, "weight": b, "bias": c, "eps": 1e-3, "count": 7,
        },
        "batch_norm_gradient_map": {
            "grad_sum": a, "grad_dot": b, "scale": c, "mean": d, "invstd": positive, "count": 7,
        },
    }[name]  # fmt: skip


def image_arguments(name: str, case: ConvCase, dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of image_conv or its backward."""
    case = replace(case, dilation=1, out_channels=case.channels + 5)
    pads = {"stride": case.stride, **dict(zip(PADS, case.padding, strict=True))}
    arguments = make_backward_sample(case, dtype).arguments
    names = ("input", "weight")
    if name == "image_conv_backward":
        names += ("grad_output", "output", "grad_scale", "raw_scale", "raw_shift")
        return {key: arguments[key] for key in names} | pads
    return {key: arguments[key] for key in names} | pads | {"statistics": True}


def arguments_of(name: str, case: ConvCase, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Keyword arguments of any of the ops, everything asked for."""
    if name.startswith("pointwise_conv"):
        case = replace(
            case, kernel=1, stride=1, padding=(0,) * 4, dilation=1, out_channels=case.channels + 5
        )
    if name in ("depthwise_conv", "pointwise_conv"):
        prologue = make_map(case.channels, dtype, case.activation)
        return forward_arguments(case, dtype, prologue=prologue, statistics=True)
    if name in ("depthwise_conv_backward", "pointwise_conv_backward"):
        return make_backward_sample(case, dtype).arguments
    if name == "separable_convs":
        return blocks_arguments(case, dtype)
    if name == "separable_convs_backward":
        return blocks_backward_arguments(case, dtype)
    if name in VECTOR_OPS:
        return vector_arguments(name, case.channels, vector_dtype(dtype))
    is_image = name.startswith("image_conv")
    return (image_arguments if is_image else element_wise_arguments)(name, case, dtype)


over_ops = pytest.mark.parametrize("name", OP_NAMES)


def test_every_op_is_listed_here() -> None:
    registered = {
        name.removeprefix("mobilenet_ext::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("mobilenet_ext::")
    }
    # Of a whole network, with tests of its own.
    assert registered - {"mobilenet"} == set(OP_NAMES)


@over_ops
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("stride_2_keras_odd_map", torch.float32),
        ("mixed_layouts", torch.bfloat16),
        ("sliced", torch.float16),
        ("one_pixel", torch.float64),
    ],
)
def test_opcheck(name: str, case: str, dtype: torch.dtype) -> None:
    arguments = arguments_of(name, case_named(case), dtype)
    opcheck(getattr(ops, name).default, (), arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"prologue": False, "epilogue": False, "need_grad_weight": False},
        {"raw_terms": False, "sums": False},
        {"need_grad_input": False, "sums": False},
    ],
)
def test_opcheck_without_optional_arguments(options: dict[str, bool]) -> None:
    """What was not asked for is an empty tensor, in the fake kernels too."""
    sample = make_backward_sample(case_named("channels_9"), **options)
    opcheck(ops.depthwise_conv_backward.default, (), sample.arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", range(5))
def test_opcheck_of_blocks_that_are_asked_for_little(wanted: int, dtype: torch.dtype) -> None:
    case = case_named("channels_9")
    opcheck(ops.separable_convs.default, (), blocks_arguments(case, dtype, of_batch=False))
    needs = [need == wanted for need in range(5)]
    for of_batch in (False, True):
        arguments = blocks_backward_arguments(
            case, dtype, of_batch=of_batch, needs=needs[:4], need_input=needs[4]
        )
        opcheck(ops.separable_convs_backward.default, (), arguments)


def test_opcheck_of_blocks_behind_a_stem() -> None:
    case = case_named("channels_9")
    for need_input in (True, False):
        arguments = blocks_backward_arguments(case, need_input=need_input) | stem_arguments(case)
        opcheck(ops.separable_convs_backward.default, (), arguments)


def stem_arguments(case: ConvCase, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What separable_convs_backward takes of a stem of stride 2 before blocks of a case."""
    image = make_tensor((case.batch, 3, 2 * case.height, 2 * case.width - 1), dtype=dtype)
    stem = torch.randn(case.channels, 3, 3, 3, dtype=dtype)
    return {"image": image, "stem": stem, "stem_options": [2, 0, 2, 1, 0]}


def test_the_gradient_of_a_stem() -> None:
    """With an image the first result is that of its convolution's weight."""
    case = replace(case_named("stride_2_keras_odd_map"), activation="relu6")
    for of_batch in (False, True):
        arguments = blocks_backward_arguments(case, torch.float64, of_batch=of_batch)
        arguments |= stem_arguments(case, torch.float64)
        actual = ops.separable_convs_backward(**arguments)
        expected = reference_ops.separable_convs_backward(**arguments)
        assert actual[0].shape == arguments["stem"].shape
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
        for implementation in (ops, reference_ops):
            results = implementation.separable_convs_backward(**arguments | {"need_input": False})
            assert results[0].shape == (0,)
            torch.testing.assert_close(results[1:], expected[1:], rtol=1e-11, atol=1e-11)


def test_opcheck_of_vectors_without_optional_arguments() -> None:
    arguments = vector_arguments("batch_norm_affine", 9, torch.float32)
    arguments |= {"weight": None, "bias": None, "count": 0}
    opcheck(ops.batch_norm_affine.default, (), arguments)
    *_, unbiased_var = ops.batch_norm_affine(**arguments)
    assert unbiased_var.shape == (0,)


@over_cases(("transposed", "empty_batch", "stride_wider_than_kernel"))
def test_opcheck_with_epilogue(case: ConvCase) -> None:
    epilogue = make_map(case.channels, torch.float32, "relu")
    opcheck(ops.depthwise_conv.default, (), forward_arguments(case, epilogue=epilogue))


@pytest.mark.parametrize("name", [name for name in OP_NAMES if name not in VECTOR_OPS])
@over_cases(
    (
        "contiguous", "sliced", "sliced_channels", "transposed", "expanded_batch", "expanded_map",
        "mixed_layouts", "mixed_layouts_stride_2", "misaligned", "channels_1", "one_pixel",
        "one_row", "one_column", "nchw_vectors", "nchw_channels_1", "nchw_one_pixel",
    )
)  # fmt: skip
def test_memory_format_follows_the_input(ops: Ops, name: str, case: ConvCase) -> None:
    """Maps come out dense, as torch's own element-wise ops would lay out their result.

    Those of one channel, or of single pixels, are dense in both ways.
    """
    if not ops.has(name):
        pytest.skip(f"{name} has no kernel for {ops.name}")
    arguments = arguments_of(name, case)
    results = getattr(ops, name)(**arguments)
    x = arguments["maps"][0] if "maps" in arguments else arguments["input"]
    memory_format = suggest_memory_format(x)
    for result in (results,) if isinstance(results, Tensor) else results:
        is_map = result.dim() == 4 and result.shape[:2] == x.shape[:2]
        assert not is_map or result.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("of_batch", [True, False], ids=["of_batch", "running"])
@over_cases(("stride_2_keras_odd_map", "mixed_layouts", "sliced", "nchw_vectors", "one_row"))
def test_blocks_on_every_device(ops: Ops, case: ConvCase, of_batch: bool) -> None:
    """Where products are the library's, activations of the backward are applied elsewhere."""
    case = replace(case, activation="relu6")
    for name, arguments in {
        "separable_convs": blocks_arguments(case, torch.float64, of_batch=of_batch),
        "separable_convs_backward": blocks_backward_arguments(
            case, torch.float64, of_batch=of_batch
        ),
    }.items():
        expected = getattr(reference_ops, name)(**arguments)
        actual = getattr(ops, name)(**arguments)
        torch.testing.assert_close(list(actual), list(expected), rtol=1e-11, atol=1e-11)


def test_autocast_does_not_reach_into_the_blocks(ops: Ops) -> None:
    case = case_named("channels_9")
    for name, arguments in {
        "separable_convs": blocks_arguments(case),
        "separable_convs_backward": blocks_backward_arguments(case),
    }.items():
        expected = list(getattr(ops, name)(**arguments))
        device = "cuda" if ops.name == "gpu" else "cpu"
        with torch.autocast(device, torch.bfloat16):
            actual = list(getattr(ops, name)(**arguments))
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@over_ops
def test_reference_computes_the_same(name: str) -> None:
    """reference_ops has the readable twin of every op: same arguments, same results."""
    case = replace(case_named("stride_2_odd_map"), activation="relu6")
    arguments = arguments_of(name, case, torch.float64)
    schema = getattr(ops, name).default._schema
    given = (arguments[x.name] for x in schema.arguments if x.name in arguments)
    actual = getattr(reference_ops, name)(*given)
    expected = getattr(ops, name)(**arguments)
    assert type(actual) is type(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@over_ops
def test_differentiating_an_op_is_not_silent(name: str) -> None:
    """Autograd lives outside of the ops; torch warns about ops that have no formula."""
    arguments = arguments_of(name, case_named("channels_9"))
    first_map = "input" if "input" in arguments else "grad_output"
    arguments["mean" if name in VECTOR_OPS else first_map].requires_grad_()
    results = getattr(ops, name)(**arguments)
    first: Tensor = results if isinstance(results, Tensor) else results[0]
    with pytest.warns(UserWarning, match=f"{name}: an autograd kernel was not registered"):
        first.sum().backward()


def test_inference_mode_and_no_grad_agree_with_grad_mode() -> None:
    arguments = arguments_of("depthwise_conv", case_named("odd_map"))
    expected = ops.depthwise_conv(**arguments)
    with torch.inference_mode():
        inferred = ops.depthwise_conv(**arguments)
    torch.testing.assert_close(inferred, expected, rtol=0, atol=0)
