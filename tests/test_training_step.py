"""What a training step asks torch to do: no BatchNorm, no activation, nothing that waits.

On a GPU each op is a launch, and reading a value from it makes the CPU wait for everything before.
"""

import re
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from implementations import over_devices
from models import images
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mobilenet_ext import FusedMobileNet, MobileNet

# In forward and backward, however a device calls them.
STOCK = re.compile(r"batch_norm|relu|hardtanh|clamp|threshold|depthwise")
WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"}


class Recorder(TorchDispatchMode):
    """Counts the ops that reach a device by "namespace.name"."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.ops[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def record_step(model: nn.Module, device: str, dtype: torch.dtype | None) -> Counter[str]:
    """Of a forward and a backward; under autocast where there is a dtype."""
    model = model.to(device, memory_format=torch.channels_last)
    x = images(2, 3, 32, 32).to(device, memory_format=torch.channels_last)
    labels = torch.arange(2, device=device)
    with Recorder() as recorder:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(x).float(), labels)
        loss.backward()
    return recorder.ops


def stock_ops(ops: Counter[str]) -> set[str]:
    return {op for op in ops if op.startswith("aten.") and STOCK.search(op)}


@over_devices
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("momentum", [0.01, None], ids=["moving_average", "cumulative_average"])
def test_training_runs_no_stock_normalisation_and_never_waits(
    device: str, dtype: torch.dtype | None, momentum: float | None
) -> None:
    ops = record_step(FusedMobileNet(7, 0.25, bn_momentum=momentum), device, dtype)
    assert stock_ops(ops) == set()
    assert ops.keys() & {f"aten.{name}" for name in WAITS} == set()
    assert ops["mobilenet_ext.separable_convs"] == 1
    assert ops["mobilenet_ext.separable_convs_backward"] == 1
    assert ops["mobilenet_ext.image_conv"] == (device == "cpu")
    assert not any("convolution" in op for op in ops)


def test_stock_ops_are_noticed() -> None:
    """The recorder sees what the stock network runs, forward and backward."""
    found = stock_ops(record_step(MobileNet(7, 0.25), "cpu", None))
    assert any("batch_norm" in op and "backward" not in op for op in found)
    assert any("batch_norm" in op and "backward" in op for op in found)
    assert any("hardtanh" in op for op in found)
