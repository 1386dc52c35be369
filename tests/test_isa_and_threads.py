"""Every instruction set agrees with the baseline; any number of threads gives the same bits."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from cases import ConvCase, case_named, over_cases
from oracle import assert_totals, assert_values
from samples import forward_arguments, make_backward_sample, make_map
from test_op_contract import OP_NAMES, arguments_of
from torch import Tensor

from mobilenet_ext import _C

ops = torch.ops.mobilenet_ext


def flat(results: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


def bits(results: Tensor | Sequence[Tensor]) -> list[bytes]:
    """What the results are in memory: unlike `torch.equal`, tells NaN and -0 apart too."""
    return [x.contiguous().flatten().view(torch.uint8).numpy().tobytes() for x in flat(results)]


def with_isa(name: str, call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    _C.set_isa(name)
    assert _C.isa() == name
    return call()


@pytest.mark.parametrize("activation", [1, 2])
def test_every_isa_activates_special_values_alike(isas: list[str], activation: int) -> None:
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([0.0, -0.0, nan, -nan, inf, -inf, 6, 7, -6, 1e-40, -1e-40, 5.5] * 4)
    x = values.view(1, -1, 1, 1)
    one, zero = torch.ones(len(values)), torch.full((len(values),), -0.0)

    def call() -> tuple[Tensor, ...]:
        return flat(ops.scale_shift_act(x, one, zero, activation))

    baseline = bits(with_isa("baseline", call))
    for isa in isas:
        assert bits(with_isa(isa, call)) == baseline, isa


@over_cases()
def test_every_isa_agrees_with_the_baseline(isas: list[str], case: ConvCase) -> None:
    """The baseline itself is checked against the oracle in the other files, on CI's CPUs."""
    prologue = make_map(case.channels, torch.float32, case.activation)
    forward = forward_arguments(case, prologue=prologue, statistics=True)
    backward = make_backward_sample(case)
    magnitudes = backward.expected(magnitude=True)

    def call() -> tuple[Tensor, ...]:
        outputs = ops.depthwise_conv(**forward)
        return *outputs, *ops.depthwise_conv_backward(**backward.arguments)

    baseline = [result.double() for result in with_isa("baseline", call)]
    count = max(case.batch * case.height * case.width, 1)
    for isa in isas[1:]:
        output, mean, var, *gradients = with_isa(isa, call)
        assert_values(output, baseline[0], torch.float32, scale=30.0)
        assert_values(mean, baseline[1], torch.float32, scale=30.0)
        assert_values(var, baseline[2], torch.float32, scale=900.0)
        largest = magnitudes[0].max().item() if count and magnitudes[0].numel() else 0.0
        assert_values(gradients[0], baseline[3], torch.float32, scale=largest)
        for i in (1, 2, 3):
            assert_totals(gradients[i], baseline[3 + i], 2 * magnitudes[i], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_isa_in_every_dtype(isas: list[str], dtype: torch.dtype) -> None:
    arguments = arguments_of("depthwise_conv", case_named("channels_33"), dtype)
    expected = with_isa("baseline", lambda: ops.depthwise_conv(**arguments))[0]
    for isa in isas[1:]:
        actual = with_isa(isa, lambda: ops.depthwise_conv(**arguments))[0]
        assert_values(actual, expected.double(), dtype, scale=30.0)


@pytest.mark.parametrize("name", OP_NAMES)
@over_cases(("bands", "bands_stride_2", "image_groups", "channel_blocks", "wide_map", "one_pixel"))
def test_same_bits_for_any_number_of_threads(threads: None, name: str, case: ConvCase) -> None:
    arguments = arguments_of(name, case)

    def run() -> list[bytes]:
        return bits(getattr(ops, name)(**arguments))

    torch.set_num_threads(1)
    expected = run()
    for count in (2, 3):
        torch.set_num_threads(count)
        assert run() == expected, f"{count} threads"
        assert run() == expected, f"{count} threads, second run"


def run_with_cache(level: int, kilobytes: int, code: str, path: Path) -> str:
    """What a Python that believes in this size of a cache prints."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {f"MOBILENET_EXT_L{level}_KB": str(kilobytes)},
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.parametrize(("level", "kilobytes"), [(2, 128), (2, 4096), (3, 1)])
def test_another_size_of_a_cache(level: int, kilobytes: int, tmp_path: Path) -> None:
    """Other tiles, maps stored past the caches: the same results up to rounding."""
    run_with_cache(level, kilobytes, WITH_ANOTHER_CACHE, tmp_path)


WITH_ANOTHER_CACHE = """
import torch
from mobilenet_ext import FusedMobileNet, MobileNet

torch.manual_seed(0)
stock, ours = MobileNet(7, alpha=0.5).double(), FusedMobileNet(7, alpha=0.5)
ours.load_state_dict(stock.state_dict())
x = torch.randn(4, 3, 128, 128)

def check(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-4)

with torch.no_grad():
    check(ours.eval()(x), stock.eval()(x.double()))
stock.dropout.p = ours.dropout.p = 0.0
expected, actual = stock.train()(x.double()), ours.train()(x)
check(actual, expected)
expected.square().sum().backward()
actual.square().sum().backward()
for name, parameter in stock.named_parameters():
    exact, found = parameter.grad, ours.get_parameter(name).grad.double()
    # A value that falls on the other side of a kink of relu6 has a share of some percent.
    assert (found - exact).norm() <= 0.1 * exact.norm(), name
"""


def test_depthwise_maps_that_no_cache_holds(tmp_path: Path) -> None:
    """The tests of whole vectors hold for maps that are stored past the caches, too."""
    here = Path(__file__).parent
    files = [str(here / f"test_depthwise_conv{name}.py") for name in ("", "_backward")]
    chosen = "(every_width or whole_vectors or in_place) and not cuda"
    arguments = ["-q", "-p", "no:cacheprovider", "-k", chosen, *files]
    code = f"import sys, pytest; sys.exit(pytest.main({arguments!r}))"
    assert " passed" in run_with_cache(3, 1, code, tmp_path)


def test_inference_in_bands_of_rows_has_the_same_bits(tmp_path: Path) -> None:
    """With a small L2 cache the first layers go in bands, with a large one map by map."""
    in_bands = run_with_cache(2, 128, LOGITS_OF_LARGE_MAPS, tmp_path)
    assert len(set(in_bands.split())) > 8
    assert in_bands == run_with_cache(2, 4096, LOGITS_OF_LARGE_MAPS, tmp_path)


LOGITS_OF_LARGE_MAPS = """
import torch
from mobilenet_ext import FusedMobileNet

torch.manual_seed(0)
for padding in ("keras", "torch"):
    for alpha, activation in ((0.3, "relu6"), (0.55, "relu")):
        model = FusedMobileNet(5, alpha=alpha, activation=activation, padding=padding).eval()
        network = model.freeze()
        for shape in ((1, 3, 97, 140), (3, 3, 130, 101), (2, 3, 160, 96)):
            x = torch.randn(shape)
            for images in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3)):
                for threads in (1, 2, 5):
                    torch.set_num_threads(threads)
                    print(network(images).double().sum().item().hex())
"""


def test_calls_from_several_python_threads_do_not_mix() -> None:
    """Scratch memory belongs to a call, not to the library."""
    from concurrent.futures import ThreadPoolExecutor

    samples = [make_backward_sample(case_named(name)) for name in ("bands", "image_groups")] * 3
    expected = [bits(ops.depthwise_conv_backward(**sample.arguments)) for sample in samples]
    with ThreadPoolExecutor(max_workers=3) as pool:
        jobs = [pool.submit(ops.depthwise_conv_backward, **sample.arguments) for sample in samples]
        assert [bits(job.result()) for job in jobs] == expected


def test_unknown_isa_is_an_error(isas: list[str]) -> None:
    with pytest.raises(ValueError, match=r"set_isa: name must be one of baseline.*got mmx"):
        _C.set_isa("mmx")
    assert _C.isa() in isas
