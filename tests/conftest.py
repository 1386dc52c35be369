"""Fixtures that every test has: a fixed seed, and process-wide settings put back afterwards."""

import os
from collections.abc import Iterator

# Read when torch loads OpenMP: threads that wait leave the core to others, who need it on CI.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from implementations import IMPLEMENTATIONS, Ops

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


@pytest.fixture(params=IMPLEMENTATIONS)
def ops(request: pytest.FixtureRequest) -> Ops:
    """The ops by one implementation after the other."""
    return request.param
