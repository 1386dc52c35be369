"""The host stand-in for a GPU: that it finds the faults it is there to find.

Barriers are taken away at run time, one after another, all that there are. Other faults are planted
in the text of a kernel, which the tests of the ops must then fail on.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import test_batch_norm_ops
import torch
from cases import ConvCase, case_named
from conv_checks import NOTHING, check_backward, check_forward
from cuda_on_host.build import CSRC, KERNELS, build
from cuda_on_host.library import VARIABLE, library
from implementations import CudaOnHost, why_not_on_host
from samples import make_backward_sample
from torch import Tensor

import mobilenet_ext

TESTS = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(why_not_on_host() is not None, reason=str(why_not_on_host()))
BARRIERS = [
    f"{path}:{number}"
    for path in sorted(KERNELS.iterdir())
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    if "__syncthreads(" in line or "__syncwarp(" in line
]


def run_a_little_of_everything() -> None:
    """Every op that has barriers, compared with the oracle, so that each of them is reached."""
    ops = CudaOnHost()
    for case in (case_named("channels_8"), case_named("channels_17"), ConvCase("", 5, 8, 20, 21)):
        check_forward(ops, case, torch.float32, prologue="relu6", epilogue=NOTHING)
        check_backward(ops, make_backward_sample(case))
        sample = test_batch_norm_ops.make_sample(case, torch.float32, "relu6")
        test_batch_norm_ops.check(ops, sample)
        test_batch_norm_ops.check_statistics(ops, sample.x)


@pytest.fixture
def without_barrier(request: pytest.FixtureRequest) -> Iterator[None]:
    library().ignore_barrier(request.param)
    yield
    library().ignore_barrier("")


def test_all_barriers_are_reached() -> None:
    assert len(BARRIERS) >= 2
    run_a_little_of_everything()
    assert library().reached_barriers() >= set(BARRIERS)


@pytest.mark.parametrize(
    "without_barrier", BARRIERS, ids=[Path(site).name for site in BARRIERS], indirect=True
)
@pytest.mark.usefixtures("without_barrier")
def test_missing_barrier_is_noticed() -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        run_a_little_of_everything()


def run_sample(name: str) -> tuple[Tensor, str]:
    names = ("shuffles", "unwritten", "neighbour", "skipped_barrier", "two_barriers", "lonely")
    return library().run_sample(names.index(name))


def test_shuffles() -> None:
    assert run_sample("shuffles")[0].tolist() == [32 * 31] * 64


def test_shared_memory_is_nan_in_every_block() -> None:
    assert run_sample("unwritten")[0].isnan().all()


def test_barrier_waits_for_all_threads() -> None:
    assert run_sample("neighbour")[0].tolist() == [(i + 1) % 64 for i in range(64)]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("skipped_barrier", r"barrier divergence in .*skipped_barrier_kernel.*, block \d: thread 0 "
         r"waits at the barrier in .*samples.cu:\d+, thread 5 has returned"),
        ("two_barriers", "thread 0 waits at the barrier in .*, thread 5 waits at the barrier in "),
        ("lonely", "thread 0 waits at the warp operation in .*, thread 5 has returned"),
    ],
)  # fmt: skip
def test_divergence_is_an_error(sample: str, message: str) -> None:
    assert re.search(message, run_sample(sample)[1])


@dataclass(frozen=True)
class Fault:
    """A text that occurs once in the kernels, what takes its place, and who shall notice."""

    text: str
    instead: str
    file: str
    tests: str  # as `pytest -k` has them


FAULTS = {
    "halo": Fault(
        "in_height - top < taps ? s.in_height - top : taps)",
        "in_height - top < taps ? s.in_height - top : taps - 1)",
        "test_depthwise_conv.py",
        "whole_vectors and float32",
    ),
    "backward_halo": Fault(
        "const int64_t begin = first < 0 ? -first : 0, end = size - first;",
        "const int64_t begin = first < 0 ? -first : 0, end = size - first - 1;",
        "test_depthwise_conv_backward.py",
        "between_two_batch_norms",
    ),
    "partition": Fault(
        "{ return (a + b - 1) / b; }",
        "{ return (a + b - 2) / b; }",
        "test_depthwise_conv.py",
        "every_dtype and float32",
    ),
}
# What it reads is masked afterwards, but nobody knows what lies there.
READ_OUTSIDE = Fault(
    "if (!row.inside || !cursor.inside[x]) continue;",
    "if (!cursor.inside[x]) continue;",
    "test_depthwise_conv.py",
    "whole_vectors and float32",
)


def plant(fault: Fault, folder: Path) -> None:
    """Writes the kernel's source with the fault in it to the folder, in place of csrc."""
    holders = [path for path in KERNELS.iterdir() if fault.text in path.read_text("utf-8")]
    assert len(holders) == 1, f"{fault.text!r} must be in one file, is in {holders}"
    original = holders[0].read_text("utf-8")
    assert original.count(fault.text) == 1
    changed = folder / holders[0].relative_to(CSRC)
    changed.parent.mkdir(parents=True)
    changed.write_text(original.replace(fault.text, fault.instead), "utf-8")


def options_of(fault: Fault) -> list[str]:
    """What pytest runs to notice the fault."""
    return [fault.file, "-k", f"cuda_on_host and {fault.tests}"]


def run_tests(path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest on the library at `path` and the package that this process has imported."""
    package = str(Path(mobilenet_ext.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, VARIABLE: str(path), **environment}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        command, cwd=TESTS, env=environment, check=False, capture_output=True, text=True
    )


def run_sanitized_tests(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The same for a library with AddressSanitizer in it, which writes past pytest."""
    names = ("libasan.so", "libstdc++.so.6")
    found = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, check=True, text=True
        ).stdout.strip()
        for name in names
    ]
    # Python keeps some of its memory to the end; CUDA maps some where AddressSanitizer wants it.
    asan_options = "detect_leaks=0:protect_shadow_gap=0"
    return run_tests(path, "-s", *options, LD_PRELOAD=" ".join(found), ASAN_OPTIONS=asan_options)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_planted_fault_is_noticed(fault: Fault, tmp_path: Path) -> None:
    plant(fault, tmp_path)
    path = build(overlay=tmp_path, only="*float32.cu")
    done = run_tests(path, *options_of(fault))
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "1 failed" in done.stdout


def test_long_strips_and_several_for_each_thread(tmp_path: Path) -> None:
    """As large tensors have them, which would take too long here."""
    text = (KERNELS / "partition.h").read_text("utf-8")
    for name in ("kWantedThreads", "kMaxBlocks", "kMaxStatisticsBlocks"):
        text, count = re.subn(rf"(constexpr int64_t {name} = )[^;]+;", r"\g<1>5;", text)
        assert count == 1, name
    header = tmp_path / "kernels/cuda/partition.h"
    header.parent.mkdir(parents=True)
    header.write_text(text, "utf-8")
    path = build(overlay=tmp_path, only="*float32.cu")
    files = ("test_depthwise_conv.py", "test_depthwise_conv_backward.py")
    selected = "cuda_on_host and not float64 and not float16 and not bfloat16"
    done = run_tests(path, *files, "-k", selected)
    assert done.returncode == pytest.ExitCode.OK, done.stdout


@pytest.mark.slow
def test_all_kernels_under_address_sanitizer() -> None:
    options = ("--ignore", Path(__file__).name, "-k", "cuda_on_host", "--every-cuda-kernel")
    done = run_sanitized_tests(build(sanitize=True), *options)
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr


@pytest.mark.slow
def test_planted_read_outside_is_noticed_by_address_sanitizer(tmp_path: Path) -> None:
    plant(READ_OUTSIDE, tmp_path)
    path = build(sanitize=True, overlay=tmp_path, only="*float32.cu")
    done = run_sanitized_tests(path, *options_of(READ_OUTSIDE))
    assert done.returncode != pytest.ExitCode.OK
    assert "AddressSanitizer: use-after-poison" in done.stderr, done.stdout + done.stderr
