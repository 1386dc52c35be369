"""How a model is watched for its frozen copy, where torch or Python is not as usual."""

import gc
import subprocess
import sys
import textwrap
import weakref
from typing import Any

import pytest
import torch
from models import images, make_pair
from torch import nn
from torch.overrides import TorchFunctionMode

from mobilenet_ext import _C


def watch_tensors(*dicts: dict[str, Any]) -> _C.ModelWatch:
    return _C.ModelWatch([], [], [], list(dicts))


def test_inference_tensors_are_not_relied_on() -> None:
    with torch.inference_mode():
        tensors = {"weight": torch.ones(2)}
    watch = watch_tensors(tensors)
    assert not watch.is_reliable()
    assert not watch.is_current()


def test_other_tensors() -> None:
    held = {"weight": torch.ones(2), "bias": None}
    bias = torch.ones(2)
    watch = watch_tensors(held)
    assert watch.is_reliable()
    assert watch.is_current()
    held["bias"] = bias
    assert not watch.is_current()
    held["bias"] = None
    assert watch.is_current()
    held["more"] = None
    assert not watch.is_current()
    del held["more"], held["bias"]
    assert not watch.is_current()


def test_other_modules_hooks_and_modes() -> None:
    first, second = nn.Dropout(), nn.Dropout()
    first.eval()
    modules, hooks = {"first": first}, {}
    watch = _C.ModelWatch([modules], [hooks], [first.__dict__], [])
    assert watch.is_current()
    modules["first"] = second
    assert not watch.is_current()
    modules["first"] = first
    first.__class__ = nn.Dropout2d
    assert not watch.is_current()
    first.__class__ = nn.Dropout
    hooks[0] = print
    assert not watch.is_current()
    del hooks[0]
    first.train()
    assert not watch.is_current()
    first.eval()
    assert watch.is_current()


def test_a_mode_that_changes_after_a_look() -> None:
    layer = nn.BatchNorm2d(3).eval()
    watch = _C.ModelWatch([], [], [layer.__dict__], [])
    assert watch.is_current()
    layer.train()
    assert not watch.is_current()


def test_what_was_there_before_the_watch() -> None:
    hooks, layer = {0: print}, nn.Dropout()
    assert not _C.ModelWatch([], [hooks], [], []).is_current()
    watch = _C.ModelWatch([], [], [layer.__dict__], [])
    assert not watch.is_current()
    assert not watch.is_current()
    layer.eval()
    assert watch.is_current()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python has no watchers of dicts")
def test_others_may_have_taken_all_watchers() -> None:
    """Python has eight for everybody; whoever gets none has to look himself."""
    code = """
        import ctypes, torch
        from mobilenet_ext import _C
        api = ctypes.pythonapi
        function = ctypes.PYFUNCTYPE(ctypes.c_int, *4 * [ctypes.c_void_p])(lambda *_: 0)
        try:
            while True: api.PyDict_AddWatcher(function)
        except RuntimeError:
            pass
        held = {"weight": torch.ones(2)}
        watch = _C.ModelWatch([], [], [], [held])
        assert watch.is_current() and watch.is_current()
        held["weight"] = torch.ones(2)
        assert not watch.is_current()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


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


def test_weights_are_freed_without_a_collection() -> None:
    """A cycle would keep them, on a GPU too, until Python's collector comes by."""
    fused = make_pair()[1].eval()
    with torch.no_grad():
        fused(images(1, 3, 64, 64))
    references = [weakref.ref(fused.stem.conv), weakref.ref(fused._frozen)]
    gc.disable()
    try:
        del fused
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


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
