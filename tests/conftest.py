"""Fixtures that all tests share, and what pytest says in the end about the CUDA kernels.

Every test starts from the same seed, and process-wide settings are put back after it.
"""

import os
from collections.abc import Iterator

# Read when torch loads OpenMP: threads that wait leave the core to others, who need it on CI.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from cuda_on_host.library import library
from implementations import IMPLEMENTATIONS, Gpu, Ops

import mobilenet_ext


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test call `torch.set_num_threads`."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def isas() -> Iterator[list[str]]:
    """The instruction sets to try, best last; lets a test call `mobilenet_ext._C.set_isa`."""
    before = mobilenet_ext._C.isa()
    yield mobilenet_ext._C.available_isas()
    mobilenet_ext._C.set_isa(before)


@pytest.fixture(
    params=[
        pytest.param(each, id=each.name, marks=[pytest.mark.cuda] if each.name == "gpu" else [])
        for each in IMPLEMENTATIONS
    ]
)
def ops(request: pytest.FixtureRequest) -> Ops:
    """The ops by one implementation after the other."""
    if reason := request.param.why_not():
        pytest.skip(reason)
    return request.param


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-cuda-kernel",
        action="store_true",
        help="fail unless the tests have run every CUDA kernel on the host",
    )


def kernels_not_run(config: pytest.Config) -> list[str]:
    """Those that --every-cuda-kernel complains about."""
    if not config.getoption("--every-cuda-kernel"):
        return []
    launched = library().launched_kernels()
    return [name for at, name in library().all_kernels().items() if at not in launched]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and kernels_not_run(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Says on what the CUDA kernels have run."""
    if library.cache_info().currsize:
        ran, every = len(library().launched_kernels()), len(library().all_kernels())
        text = f"{ran} of {every} emulated on the host, in {library().orders} orders of threads"
    else:
        text = "none emulated on the host"
    text += f"; run on {torch.cuda.get_device_name()}" if Gpu.has_run else "; not run on a GPU"
    terminalreporter.write_line(f"CUDA kernels: {text}", yellow=not Gpu.has_run)
    for kernel in sorted(kernels_not_run(config)):
        terminalreporter.write_line(f"CUDA kernel never run on the host: {kernel}", red=True)
