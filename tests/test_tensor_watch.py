"""How the frozen copy's tensors are watched, where torch or Python is not as usual."""

import gc
import weakref
from typing import Any

import torch
from models import images, make_pair
from torch.overrides import TorchFunctionMode

from mobilenet_ext import _C


def test_inference_tensors_are_not_relied_on() -> None:
    with torch.inference_mode():
        tensors = [{"weight": torch.ones(2)}]
    watch = _C.TensorWatch(tensors)
    assert not watch.is_reliable()
    assert not watch.is_current(tensors)


def test_more_and_fewer_tensors() -> None:
    held = {"weight": torch.ones(2), "bias": None}
    watch = _C.TensorWatch([held])
    assert watch.is_reliable()
    assert watch.is_current([held])
    assert not watch.is_current([held, {"other": None}])
    assert not watch.is_current([{"weight": held["weight"]}])


def test_a_model_is_collected_after_inference() -> None:
    """Though one of its tensors refers to it."""
    fused = make_pair()[1].eval()
    fused.stem.conv.weight.owner = fused
    with torch.no_grad():
        fused(images(1, 3, 64, 64))
    reference = weakref.ref(fused)
    del fused
    gc.collect()
    assert reference() is None


def test_data_is_kept_until_the_next_look() -> None:
    """Otherwise data assigned later could get its address, and go unnoticed."""
    fused = make_pair()[1].eval()
    x = images(1, 3, 64, 64)
    weight = fused.stem.conv.weight
    array = weight.detach().numpy().copy()
    kept = weakref.ref(array)
    weight.data = torch.from_numpy(array)
    del array
    with torch.no_grad():
        fused(x)
        weight.data = torch.zeros_like(weight)
        assert kept() is not None
        fused(x)
    assert kept() is None


def test_function_modes_may_answer_for_torch() -> None:
    class Mute(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if getattr(func, "__name__", "") == "__get__":
                name = getattr(func.__self__, "__name__", "")
                if name in ("_cdata", "_version"):
                    return "nothing"
            return func(*args, **(kwargs or {}))

    stock, fused = (model.eval() for model in make_pair(torch.float64))
    x = images(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = stock(x)
        for _ in range(2):
            with Mute():
                torch.testing.assert_close(fused(x), expected)
            torch.testing.assert_close(fused(x), expected)
