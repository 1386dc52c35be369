"""The CUDA kernels on a GPU: what the tests of the ops, which run there too, do not look at.

Without one, only that the library loads and registers its kernels, if this build has it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import ConvCase, case_named
from conv_checks import NOTHING, check_backward, check_forward
from implementations import Gpu, has_cuda_kernel, on_gpu, to_gpu
from samples import forward_arguments, make_backward_sample, make_map
from test_batch_norm_ops import check as check_batch_norm
from test_batch_norm_ops import check_statistics, make_sample
from torch import Tensor
from torch.nn import functional as F

from mobilenet_ext._library import build_facts, cuda_status, has_kernels

depthwise_conv = torch.ops.mobilenet_ext.depthwise_conv
over_layouts = pytest.mark.parametrize("layout", ["channels_last", "contiguous"])


def on_device(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an op, on the GPU."""
    return {name: to_gpu(value) for name, value in arguments.items()}


def forward(layout: str) -> Callable[[], tuple[Tensor, ...]]:
    """A call of the forward op, and its input."""
    case = ConvCase("", 8, 32, 112, 112, layout=layout)
    prologue = make_map(32, torch.float16, "relu6")
    arguments = forward_arguments(case, torch.float16, prologue=prologue, statistics=True)
    return arguments_call("depthwise_conv", arguments)


def backward(layout: str) -> Callable[[], tuple[Tensor, ...]]:
    case = ConvCase("", 8, 32, 56, 56, layout=layout, grad_layout=layout)
    return arguments_call("depthwise_conv_backward", make_backward_sample(case).arguments)


def arguments_call(op: str, arguments: dict[str, Any]) -> Callable[[], tuple[Tensor, ...]]:
    """The op on the GPU with these arguments, of which `input` can be changed in between."""
    there = on_device(arguments)

    def call() -> tuple[Tensor, ...]:
        return tuple(getattr(torch.ops.mobilenet_ext, op)(**there))

    call.input = there["input"]  # type: ignore[attr-defined]
    return call


over_calls = pytest.mark.parametrize("make_call", [forward, backward])


def assert_same_bits(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_library_loads_and_registers_where_it_was_built() -> None:
    if not build_facts().get("cuda", "").startswith("built") or torch.version.cuda is None:
        pytest.skip(f"the CUDA library is {cuda_status()}")
    assert cuda_status().startswith("loaded")
    assert has_cuda_kernel("depthwise_conv")
    assert has_kernels(torch.device("cuda"))  # or FusedMobileNet would use stock ops there


@on_gpu
@over_layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
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
def test_layers_of_mobilenet(case: ConvCase, dtype: torch.dtype, layout: str) -> None:
    """Many strips for each thread, many thread blocks, several blocks of channels."""
    case = replace(case, layout=layout, grad_layout=layout)
    check_forward(Gpu(), case, dtype, prologue="relu6", epilogue=NOTHING)
    if dtype == torch.float32:
        case = replace(case, batch=2)
        check_backward(Gpu(), make_backward_sample(case))
        sample = make_sample(case, dtype, "relu6")
        check_batch_norm(Gpu(), sample)
        check_statistics(Gpu(), sample.x, rtol=1e-5)


@on_gpu
def test_output_has_the_memory_format_of_the_input() -> None:
    for layout in ("channels_last", "contiguous"):
        arguments = forward_arguments(ConvCase("", 2, 16, 6, 7, layout=layout))
        on_cpu = depthwise_conv(**arguments)[0]
        assert Gpu().depthwise_conv(**arguments)[0].stride() == on_cpu.stride()


@on_gpu
@over_layouts
@over_calls
def test_no_map_is_copied(make_call: Any, layout: str) -> None:
    """At the peak there is hardly more memory in use than the results take."""
    call = make_call(layout)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    more = torch.cuda.max_memory_allocated() - before
    assert more < sum(result.nbytes for result in results) + call.input.nbytes / 2


@on_gpu
@over_layouts
@over_calls
def test_results_are_the_same_bits_every_time(make_call: Any, layout: str) -> None:
    call = make_call(layout)
    first = call()
    for _ in range(5):
        assert_same_bits(call(), first)


@on_gpu
@over_layouts
@over_calls
def test_runs_on_the_current_stream(make_call: Any, layout: str) -> None:
    """The input is ready, and the output is wanted, on the side stream alone."""
    call = make_call(layout)
    expected = tuple(result.clone() for result in call())
    source = call.input.clone()
    call.input.zero_()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        call.input.copy_(source)
        results = tuple(result.clone() for result in call())
    side.synchronize()
    assert_same_bits(results, expected)


@on_gpu
@over_layouts
@over_calls
def test_can_be_captured_in_a_graph(make_call: Any, layout: str) -> None:
    call = make_call(layout)
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    call.input.mul_(-2)
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(captured, call())


@on_gpu
@over_layouts
def test_more_than_two_to_the_31_elements(layout: str) -> None:
    """The last pixels of the last image, of which no offset fits into 32 bits."""
    shape = (3, 64, 3400, 3400)
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("needs 12 GB of memory on the GPU")
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    x = torch.empty(shape, dtype=torch.float16, device="cuda", memory_format=formats[layout])
    assert x.numel() > 2**31
    weight = torch.randn(64, 1, 3, 3, dtype=torch.float16, device="cuda")
    maps = (None, None, 0, None, None, 0)
    y = depthwise_conv(x.normal_(), weight, *maps, False, 1, 1, 1, 1, 1, 1)[0]
    corner = x[-1:, :, -30:, -30:].double()
    expected = F.conv2d(corner, weight.double(), padding=(1, 1), groups=64)[:, :, 1:, 1:]
    torch.testing.assert_close(y[-1:, :, -29:, -29:].double(), expected, rtol=1e-3, atol=1e-3)


@on_gpu
def test_arguments_must_be_on_one_device() -> None:
    arguments = forward_arguments(case_named("channels_8"))
    arguments["input"] = arguments["input"].cuda()
    with pytest.raises(RuntimeError, match="weight must be on cuda:0 like the input, got cpu"):
        depthwise_conv(**arguments)
