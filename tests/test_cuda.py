"""The CUDA kernels on a GPU: what the tests of the ops, which run there too, do not look at.

Without one, only that the library loads and registers its kernels, if this build has it.
"""

import pytest
import torch
from cases import ConvCase, case_named
from conv_checks import NOTHING, check_forward
from implementations import Gpu, has_cuda_kernel, on_gpu, to_gpu
from samples import forward_arguments, make_map

from mobilenet_ext._library import build_facts, cuda_status

depthwise_conv = torch.ops.mobilenet_ext.depthwise_conv


def test_library_loads_and_registers_where_it_was_built() -> None:
    if not build_facts().get("cuda", "").startswith("built") or torch.version.cuda is None:
        pytest.skip(f"the CUDA library is {cuda_status()}")
    assert cuda_status().startswith("loaded")
    assert has_cuda_kernel("depthwise_conv")


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
    check_forward(Gpu(), case, dtype, prologue="relu6", epilogue=NOTHING)


@on_gpu
def test_output_has_the_memory_format_of_the_input() -> None:
    for layout in ("channels_last", "contiguous"):
        arguments = forward_arguments(ConvCase("", 2, 16, 6, 7, layout=layout))
        on_cpu = depthwise_conv(**arguments)[0]
        assert Gpu().depthwise_conv(**arguments)[0].stride() == on_cpu.stride()


@on_gpu
def test_results_are_the_same_bits_every_time() -> None:
    case = ConvCase("", 8, 32, 112, 112)
    prologue = make_map(32, torch.bfloat16, "relu6")
    arguments = forward_arguments(case, torch.bfloat16, prologue=prologue, statistics=True)
    first = Gpu().depthwise_conv(**arguments)
    for _ in range(5):
        again = Gpu().depthwise_conv(**arguments)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


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
