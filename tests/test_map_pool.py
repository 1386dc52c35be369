"""Memory of large maps, which is kept for the next: nothing two maps share, and an end to it."""

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from oracle import assert_values
from torch import Tensor
from torch.nn import functional as F

from mobilenet_ext.functional import pointwise_conv

SIZE = (4, 16, 160, 160)  # 6.5 MB
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


def make_map() -> Tensor:
    return torch.randn(SIZE).contiguous(memory_format=torch.channels_last)


def make_weight() -> Tensor:
    return torch.randn(16, 16, 1, 1)


def assert_convolved(output: Tensor, input: Tensor, weight: Tensor) -> None:
    assert_values(output, F.conv2d(input.double(), weight.double()), torch.float32)


def test_maps_in_use_share_no_memory() -> None:
    weight = make_weight()
    inputs = [make_map() for _ in range(4)]
    outputs: dict[int, Tensor] = {}
    for i in (0, 1, 2, 3, 1, 3, 0):  # each takes the memory of the one that it replaces, or new
        outputs.pop(i, None)
        outputs[i] = pointwise_conv(inputs[i], weight).tensor
    for i, output in outputs.items():
        assert_convolved(output, inputs[i], weight)


def test_threads_share_the_pool_and_no_memory() -> None:
    weight = make_weight()

    def keep_first(input: Tensor) -> Tensor:
        kept = pointwise_conv(input, weight).tensor
        for _ in range(4):
            pointwise_conv(input.neg(), weight)
        return kept

    inputs = [make_map() for _ in range(8)]
    with ThreadPoolExecutor(4) as threads:
        for input, output in zip(inputs, threads.map(keep_first, inputs), strict=True):
            assert_convolved(output, input, weight)


@pytest.mark.skipif(TORCH < (2, 11), reason="torch takes memory with a deleter since 2.11")
def test_next_map_has_the_memory_of_the_last() -> None:
    input, weight = make_map(), make_weight()
    places, others = set(), []
    gc.collect()  # or maps of other tests might come back meanwhile
    for _ in range(5):
        output = pointwise_conv(input, weight).tensor
        places.add(output.data_ptr())
        del output
        others.append(torch.empty(SIZE))  # malloc would put it where the output was
    assert len(places) == 1


def test_a_view_keeps_the_memory_of_its_map() -> None:
    input, weight = make_map(), make_weight()
    expected = F.conv2d(input.double(), weight.double())
    views = [pointwise_conv(input, weight).tensor[:, i] for i in range(6)]
    for i in (5, 0, 3):
        assert_values(views[i], expected[:, i], torch.float32)
        views[i] = pointwise_conv(input, weight).tensor[:, i]
    for i, view in enumerate(views):
        assert_values(view, expected[:, i], torch.float32)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_maps_of_ever_other_sizes_do_not_pile_up(tmp_path: Path) -> None:
    script = """
import os
import torch
from mobilenet_ext import functional

def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

weight = torch.randn(64, 64, 1, 1)
for width in range(600, 100, -10):  # 92 to 17 MB, all together 2.7 GB
    input = torch.empty(6, 64, 100, width).contiguous(memory_format=torch.channels_last)
    functional.pointwise_conv(input, weight)
    if width == 600:
        first = megabytes()
print(first, megabytes())
"""
    run = [sys.executable, "-c", script]
    first, last = map(int, subprocess.check_output(run, text=True, cwd=tmp_path).split())
    assert last < first + 250


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_pool_forgets_a_large_batch(tmp_path: Path) -> None:
    script = """
import os
import torch
from mobilenet_ext import functional

def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

def convolve(batch):
    input = torch.empty(batch, 64, 100, 100).contiguous(memory_format=torch.channels_last)
    return functional.pointwise_conv(input, weight).tensor

weight = torch.randn(64, 64, 1, 1)
convolve(4)
first = megabytes()
large = convolve(160)  # 410 MB
most = megabytes()
del large
for _ in range(40):
    convolve(4)
print(first, most, megabytes())
"""
    run = [sys.executable, "-c", script]
    first, most, last = map(int, subprocess.check_output(run, text=True, cwd=tmp_path).split())
    assert most > first + 350
    assert last < first + 150
