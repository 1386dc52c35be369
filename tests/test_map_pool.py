"""Memory of large maps, which is kept for the next: nothing two maps share, and an end to it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mobilenet_ext.functional import pointwise_conv

SIZE = (4, 16, 160, 160)  # 6.5 MB
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


def make_map() -> Tensor:
    return torch.randn(SIZE).contiguous(memory_format=torch.channels_last)


def make_weight() -> Tensor:
    return torch.randn(16, 16, 1, 1)


def test_maps_in_use_share_no_memory() -> None:
    weight = make_weight()
    inputs = [make_map() for _ in range(4)]
    outputs: dict[int, Tensor] = {}
    for i in (0, 1, 2, 3, 1, 3, 0):  # each takes the memory of the one that it replaces, or new
        outputs.pop(i, None)
        outputs[i] = pointwise_conv(inputs[i], weight).tensor
    for i, output in outputs.items():
        torch.testing.assert_close(output, F.conv2d(inputs[i], weight))


@pytest.mark.skipif(TORCH < (2, 11), reason="torch takes memory with a deleter since 2.11")
def test_next_map_has_the_memory_of_the_last() -> None:
    input, weight = make_map(), make_weight()
    places, others = set(), []
    for _ in range(5):
        output = pointwise_conv(input, weight).tensor
        places.add(output.data_ptr())
        del output
        others.append(torch.empty(SIZE))  # malloc would put it where the output was
    assert len(places) == 1


def test_a_view_keeps_the_memory_of_its_map() -> None:
    input, weight = make_map(), make_weight()
    expected = F.conv2d(input, weight)
    views = [pointwise_conv(input, weight).tensor[:, i] for i in range(6)]
    for i in (5, 0, 3):
        torch.testing.assert_close(views[i], expected[:, i])
        views[i] = pointwise_conv(input, weight).tensor[:, i]
    for i, view in enumerate(views):
        torch.testing.assert_close(view, expected[:, i])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_maps_of_ever_other_sizes_do_not_pile_up() -> None:
    script = """
import torch
from mobilenet_ext import functional

def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20

weight = torch.randn(64, 64, 1, 1)
for width in range(600, 100, -10):  # 92 to 17 MB, all together 2.7 GB
    input = torch.empty(6, 64, 100, width).contiguous(memory_format=torch.channels_last)
    functional.pointwise_conv(input, weight)
    if width == 600:
        first = megabytes()
print(first, megabytes())
"""
    run = [sys.executable, "-c", script]
    first, last = map(int, subprocess.check_output(run, text=True).split())
    assert last < first + 250
