"""The CUDA kernels: against float64 stock PyTorch on the CPU, where there is a GPU to run them.

Without one, only that the library loads and registers its kernels, if this build has it.
"""

from typing import Any

import oracle
import pytest
import torch
from cases import (
    ACTIVATIONS,
    FEW_CASES,
    ConvCase,
    case_named,
    over_cases,
    over_dtypes,
    vector_dtype,
)
from oracle import assert_values
from samples import ScaleShiftAct, forward_arguments, make_map
from torch import Tensor

from mobilenet_ext._library import build_facts, cuda_status

OP = "mobilenet_ext::depthwise_conv"
depthwise_conv = torch.ops.mobilenet_ext.depthwise_conv


def is_registered() -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(OP, "CUDA")


def why_not() -> str | None:
    """What keeps CUDA kernels from running here, if anything does."""
    if not torch.cuda.is_available():
        return "CUDA kernels not executed: torch sees no GPU"
    if not is_registered():
        return f"CUDA kernels not executed: {cuda_status()}"
    return None


def on_gpu(function: Any) -> Any:
    """Marks a test as one that needs a GPU."""
    return pytest.mark.cuda(
        pytest.mark.skipif(why_not() is not None, reason=str(why_not()))(function)
    )


def to_gpu(value: Any) -> Any:
    """A tensor on the GPU, with its strides, its offset and all that surrounds it in memory."""
    if not isinstance(value, Tensor):
        return value
    storage = value.untyped_storage()
    everything = value.new_empty(0).set_(storage, 0, (len(storage) // value.element_size(),))
    return everything.cuda().as_strided(value.size(), value.stride(), value.storage_offset())


def run(arguments: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The op on the GPU, its results on the CPU."""
    results = depthwise_conv(**{name: to_gpu(value) for name, value in arguments.items()})
    assert all(result.is_cuda for result in results)
    output, mean, var = (result.cpu() for result in results)
    return output, mean, var


def check(case: ConvCase, dtype: torch.dtype, *, prologue: bool, epilogue: bool) -> None:
    """Compares values and, where there is no epilogue, statistics with the oracle's."""
    before = make_map(case.channels, dtype, case.activation) if prologue else None
    after = make_map(case.channels, dtype, case.activation) if epilogue else None
    arguments = forward_arguments(
        case, dtype, prologue=before, epilogue=after, statistics=not epilogue
    )
    output, mean, var = run(arguments)
    x, weight = arguments["input"], arguments["weight"].double()
    made_of = before.magnitude(x) if before else x.double().abs()
    most = oracle.depthwise_conv(made_of, weight.abs(), case)
    scale = most.max().item() if most.numel() else 0.0
    raw = oracle.depthwise_conv(before(x) if before else x, weight, case)
    if after:
        assert_values(output, after(raw), dtype, scale=4 * scale + 3)
        assert mean.shape == var.shape == (0,)
        return
    assert_values(output, raw, dtype, scale=scale)
    assert_statistics(output, mean, var)


def assert_statistics(output: Tensor, mean: Tensor, var: Tensor) -> None:
    """`mean` and `var` must be those of `output` as it is stored."""
    dtype = vector_dtype(output.dtype)
    if not output.numel():
        assert mean.isnan().all()
        assert var.isnan().all()
        assert mean.shape == var.shape == output.shape[1:2]
        return
    stored = output.double()
    largest = stored.abs().max().item()
    assert_values(mean, stored.mean((0, 2, 3)), dtype, scale=largest)
    assert_values(var, stored.var((0, 2, 3), correction=0), dtype, scale=largest**2)


def test_library_loads_and_registers_where_it_was_built() -> None:
    if not build_facts().get("cuda", "").startswith("built") or torch.version.cuda is None:
        pytest.skip(f"the CUDA library is {cuda_status()}")
    assert cuda_status().startswith("loaded")
    assert is_registered()


@on_gpu
@over_cases()
def test_raw_output_and_its_statistics(case: ConvCase) -> None:
    check(case, torch.float32, prologue=False, epilogue=False)


@on_gpu
@over_cases()
def test_prologue_and_statistics(case: ConvCase) -> None:
    check(case, torch.float32, prologue=True, epilogue=False)


@on_gpu
@over_cases()
def test_prologue_and_epilogue(case: ConvCase) -> None:
    check(case, torch.float32, prologue=True, epilogue=True)


@on_gpu
@over_cases((*FEW_CASES, "channels_16", "stride_2_one_pixel", "bands_dilation_2", "misaligned"))
@over_dtypes
def test_every_dtype(case: ConvCase, dtype: torch.dtype) -> None:
    check(case, dtype, prologue=False, epilogue=False)
    check(case, dtype, prologue=True, epilogue=False)
    check(case, dtype, prologue=True, epilogue=True)


@on_gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_activation(activation: str | None, stride: int) -> None:
    case = ConvCase("", 2, 24, 9, 10, stride=stride, activation=activation)
    check(case, torch.float32, prologue=True, epilogue=False)
    check(case, torch.float32, prologue=False, epilogue=True)
    check(case, torch.bfloat16, prologue=True, epilogue=True)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        ConvCase("", 16, 32, 112, 112),
        ConvCase("", 16, 64, 112, 112, stride=2, padding=(0, 1, 0, 1)),
        ConvCase("", 64, 512, 14, 14),
        ConvCase("", 64, 1024, 7, 7),
    ],
    ids=["112x112", "112x112_stride_2", "14x14", "7x7"],
)
def test_layers_of_mobilenet(case: ConvCase, dtype: torch.dtype) -> None:
    """Many strips for each thread, many thread blocks, several blocks of channels."""
    check(case, dtype, prologue=True, epilogue=False)


@on_gpu
def test_padding_is_zero_after_the_prologue() -> None:
    case = ConvCase("", 1, 8, 5, 5)
    ones = torch.ones(8)
    arguments = forward_arguments(case, prologue=ScaleShiftAct(ones, 3 * ones, "relu6"))
    arguments["input"].zero_()
    arguments["weight"].fill_(1)
    output = run(arguments)[0]
    assert (output[0, :, 2, 2] == 27).all()
    assert (output[0, :, 0, 0] == 12).all()
    assert (output[0, :, 4, 2] == 18).all()


@on_gpu
def test_nan_passes_the_activations_and_stays_in_its_channel() -> None:
    case = case_named("channels_16")
    maps = {
        "prologue": ScaleShiftAct(torch.ones(16), torch.zeros(16), "relu6"),
        "statistics": True,
    }
    arguments = forward_arguments(case, **maps)
    x = arguments["input"]
    x[0, 5, 2, 2], x[1, 3, 2, 2] = torch.nan, torch.inf
    expected = oracle.depthwise_conv(maps["prologue"](x), arguments["weight"], case)
    output, mean, var = run(arguments)
    assert_values(output, expected, torch.float32, scale=60.0)
    only = torch.arange(16) == 5
    assert torch.equal(mean.isnan(), only)
    assert torch.equal(var.isnan(), only)


@on_gpu
def test_statistics_of_data_far_from_zero() -> None:
    """|mean| is 2,000 standard deviations: a plain sum of squares would lose the variance."""
    case = ConvCase("", 4, 24, 28, 28, padding=(0, 0, 0, 0))
    arguments = forward_arguments(case, statistics=True)
    arguments["input"] += 6000.0
    arguments["weight"].fill_(1 / 9)
    output, mean, var = run(arguments)
    stored = output.double()
    torch.testing.assert_close(mean.double(), stored.mean((0, 2, 3)), rtol=1e-6, atol=0)
    expected = stored.var((0, 2, 3), correction=0)
    torch.testing.assert_close(var.double(), expected, rtol=1e-4, atol=0)


@on_gpu
def test_output_has_the_memory_format_of_the_input() -> None:
    for layout in ("channels_last", "contiguous"):
        arguments = forward_arguments(ConvCase("", 2, 16, 6, 7, layout=layout))
        on_cpu = depthwise_conv(**arguments)[0]
        assert run(arguments)[0].stride() == on_cpu.stride()


@on_gpu
def test_results_are_the_same_bits_every_time() -> None:
    case = ConvCase("", 8, 32, 112, 112)
    prologue = make_map(32, torch.bfloat16, "relu6")
    arguments = forward_arguments(case, torch.bfloat16, prologue=prologue, statistics=True)
    first = run(arguments)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(arguments), strict=True))


@on_gpu
def test_runs_on_the_current_stream() -> None:
    """The input is ready, and the output is wanted, on the side stream alone."""
    case = ConvCase("", 8, 32, 112, 112)
    arguments = {k: to_gpu(v) for k, v in forward_arguments(case, statistics=True).items()}
    expected = [result.clone() for result in depthwise_conv(**arguments)]
    source = arguments["input"].clone()
    arguments["input"].zero_()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        arguments["input"].copy_(source)
        results = [result.clone() for result in depthwise_conv(**arguments)]
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))


@on_gpu
def test_can_be_captured_in_a_graph() -> None:
    case = ConvCase("", 2, 32, 28, 28, stride=2)
    arguments = {k: to_gpu(v) for k, v in forward_arguments(case, statistics=True).items()}
    depthwise_conv(**arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = depthwise_conv(**arguments)
    arguments["input"].mul_(-2)
    graph.replay()
    torch.cuda.synchronize()
    assert all(
        torch.equal(a, b) for a, b in zip(captured, depthwise_conv(**arguments), strict=True)
    )


@on_gpu
def test_arguments_must_be_on_one_device() -> None:
    arguments = forward_arguments(case_named("channels_8"))
    arguments["input"] = arguments["input"].cuda()
    with pytest.raises(RuntimeError, match="weight must be on cuda:0 like the input, got cpu"):
        depthwise_conv(**arguments)
