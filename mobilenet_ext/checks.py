"""Arguments that Python sees first; the ops check the rest. Every message: expected and got."""

from __future__ import annotations

from numbers import Integral

from torch import Tensor

from .batch_norm import ACTIVATIONS, BatchNorm
from .geometry import Padding


def require(condition: bool, where: str, expected: str, got: object) -> None:
    """Raise ValueError unless the condition holds; `where` is "function: argument"."""
    if not condition:
        raise ValueError(f"{where} must be {expected}, got {got!r}")


def is_int(value: object) -> bool:
    """Tell whether a value is an int or one of numpy's, which are no `int`."""
    return isinstance(value, (int, Integral))


def check_map(op: str, input: Tensor) -> None:
    """An input is [N, C, H, W]."""
    require(input.dim() == 4, f"{op}: input", "[N, C, H, W]", list(input.shape))


def check_batch_norm(op: str, name: str, bn: BatchNorm, channels: int) -> None:
    """Vectors are [channels], running statistics are there when needed, options are in range."""
    for field in ("weight", "bias", "running_mean", "running_var"):
        vector = getattr(bn, field)
        got = None if vector is None else list(vector.shape)
        if got is not None:
            require(got == [channels], f"{op}: {name}{field}", f"[C] = [{channels}]", got)
        elif field.startswith("running"):
            require(bn.training, f"{op}: {name}{field}", "given unless training", got)
    activations = list(ACTIVATIONS)
    require(
        bn.activation in activations, f"{op}: {name}activation", f"in {activations}", bn.activation
    )
    require(bn.eps >= 0, f"{op}: {name}eps", "at least 0", bn.eps)


def check_conv(
    op: str, input: Tensor, weight: Tensor, stride: int, padding: Padding, dilation: int
) -> None:
    """Weight is depthwise and square, strides and dilations are positive, pads are not negative."""
    check_map(op, input)
    channels, shape = input.shape[1], list(weight.shape)
    depthwise = len(shape) == 4 and shape[1] == 1 and shape[2] == shape[3]
    require(
        depthwise and channels > 0 and shape[0] > 0 and shape[0] % channels == 0,
        f"{op}: weight",
        f"[C * multiplier, 1, K, K] with C = {channels}",
        shape,
    )
    require(is_int(stride) and stride >= 1, f"{op}: stride", "an int, at least 1", stride)
    require(is_int(dilation) and dilation >= 1, f"{op}: dilation", "an int, at least 1", dilation)
    check_padding(op, padding)


def check_pointwise(op: str, channels: int, weight: Tensor) -> None:
    """Weight is 1 x 1 over so many input channels."""
    shape = list(weight.shape)
    require(
        len(shape) == 4 and shape[0] > 0 and shape[1:] == [channels, 1, 1],
        f"{op}: {'pointwise_' if 'separable' in op else ''}weight",
        f"[C', {channels}, 1, 1]",
        shape,
    )


def check_padding(op: str, padding: Padding) -> None:
    """Padding is one size, four sizes, or "same"."""
    sizes = padding if isinstance(padding, tuple) else (padding,) * 4
    valid = len(sizes) == 4 and all(isinstance(size, int) and size >= 0 for size in sizes)
    require(
        padding == "same" or valid,
        f"{op}: padding",
        '"same", an int or (left, right, top, bottom), none of them negative',
        padding,
    )
