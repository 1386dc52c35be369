"""The host stand-in for a GPU: that it finds the faults it is there to find.

Barriers are taken away at run time, one after another, all that there are. Other faults are planted
in the text of a kernel, which the tests of the ops must then fail on.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_batch_norm_ops
import torch
from cases import ConvCase, case_named
from conv_checks import NOTHING, check_backward, check_forward
from cuda_on_host.build import KERNELS, build
from cuda_on_host.faults import (
    FAULTS,
    LONG_STRIPS,
    READ_OUTSIDE,
    build_with_faults,
    options_of,
    plant,
)
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
        check_backward(ops, make_backward_sample(case, torch.bfloat16))
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
    names = ("shuffles", "unwritten", "neighbour", "skipped_barrier", "two_barriers", "lonely",
             "copies")  # fmt: skip
    return library().run_sample(names.index(name))


def test_shuffles() -> None:
    assert run_sample("shuffles")[0].tolist() == [32 * 31] * 64


def test_shared_memory_is_nan_in_every_block() -> None:
    assert run_sample("unwritten")[0].isnan().all()


def test_barrier_waits_for_all_threads() -> None:
    assert run_sample("neighbour")[0].tolist() == [(i + 1) % 64 for i in range(64)]


def test_copies_are_made_when_they_are_waited_for() -> None:
    assert run_sample("copies")[0].tolist() == [12] * 64


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


def run_python(path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python on the library at `path` and the package that this process has imported."""
    package = str(Path(mobilenet_ext.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, VARIABLE: str(path), **environment}
    command = [sys.executable, "-m", *options]
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
    pytest_options = ("pytest", "-x", "-q", "-p", "no:cacheprovider", "-s")
    environment = {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": asan_options}
    return run_python(path, *pytest_options, *options, **environment)


@pytest.fixture(scope="module")
def exit_statuses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """How the tests of the ops end with each of the planted faults at work."""
    folder = tmp_path_factory.mktemp("faults")
    results = folder / "results.json"
    done = run_python(build_with_faults(folder), "cuda_on_host.faults", str(results))
    assert results.exists(), done.stdout + done.stderr
    return json.loads(results.read_text("utf-8"))


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_noticed(name: str, exit_statuses: dict[str, list[int]]) -> None:
    for tests, status in zip(FAULTS[name].noticed_by, exit_statuses[name], strict=True):
        assert status == pytest.ExitCode.TESTS_FAILED, tests


def test_long_strips_and_several_for_each_thread(exit_statuses: dict[str, list[int]]) -> None:
    """As large tensors have them, which would take too long here."""
    assert set(exit_statuses[LONG_STRIPS]) == {pytest.ExitCode.OK}


@pytest.mark.slow
def test_all_kernels_under_address_sanitizer() -> None:
    options = ("--ignore", Path(__file__).name, "-k", "cuda_on_host", "--every-cuda-kernel")
    done = run_sanitized_tests(build(sanitize=True), *options)
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr


@pytest.mark.slow
def test_planted_read_outside_is_noticed_by_address_sanitizer(tmp_path: Path) -> None:
    plant(READ_OUTSIDE, 0, tmp_path)  # 0: always at work
    path = build(sanitize=True, overlay=tmp_path, only="*conv_float32.cu")
    done = run_sanitized_tests(path, *options_of(READ_OUTSIDE.noticed_by[0]))
    assert done.returncode != pytest.ExitCode.OK
    assert "AddressSanitizer: use-after-poison" in done.stderr, done.stdout + done.stderr
