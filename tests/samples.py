"""Arguments for the ops, made from a case, and what the ops must return for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import oracle
import torch
from cases import ACTIVATIONS, ConvCase, make_tensor, make_vector, make_weight
from torch import Tensor

GEOMETRY = ("stride", "pad_left", "pad_right", "pad_top", "pad_bottom", "dilation")


@dataclass(frozen=True)
class ScaleShiftAct:
    """A prologue or an epilogue; the vectors are [C]."""

    scale: Tensor
    shift: Tensor
    activation: str | None

    def __call__(self, x: Tensor) -> Tensor:
        return oracle.scale_shift_act(x, self.scale, self.shift, self.activation)

    def before_activation(self, x: Tensor) -> Tensor:
        return oracle.scale_shift_act(x, self.scale, self.shift, None)

    def magnitude(self, x: Tensor) -> Tensor:
        """The magnitudes that the result is made of, which may cancel; 0 where it is cut off."""
        made_of = (x.double() * oracle.per_channel(self.scale)).abs()
        return (made_of + oracle.per_channel(self.shift).abs()) * (self(x) != 0)

    def arguments(self, name: str) -> dict[str, Any]:
        """As the arguments `<name>_scale`, `<name>_shift` and `<name>_activation` of an op."""
        return {
            f"{name}_scale": self.scale,
            f"{name}_shift": self.shift,
            f"{name}_activation": ACTIVATIONS[self.activation],
        }


def no_map(name: str) -> dict[str, Any]:
    return {f"{name}_scale": None, f"{name}_shift": None, f"{name}_activation": 0}


def make_map(channels: int, dtype: torch.dtype, activation: str | None) -> ScaleShiftAct:
    """Scales of both signs, and values on both sides of every kink of the activation."""
    return ScaleShiftAct(
        make_vector(channels, -2.0, 4.0, dtype), make_vector(channels, -1.0, 3.0, dtype), activation
    )


def forward_arguments(
    case: ConvCase,
    dtype: torch.dtype = torch.float32,
    *,
    prologue: ScaleShiftAct | None = None,
    epilogue: ScaleShiftAct | None = None,
    statistics: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of `torch.ops.mobilenet_ext.depthwise_conv` or `pointwise_conv`."""
    return {
        "input": make_tensor(case.shape, case.layout, dtype),
        "weight": make_weight(case, dtype),
        **(prologue.arguments("input") if prologue else no_map("input")),
        **(epilogue.arguments("output") if epilogue else no_map("output")),
        "statistics": statistics,
        **geometry_arguments(case),
    }


def geometry_arguments(case: ConvCase) -> dict[str, int]:
    """What only a depthwise convolution takes."""
    return {} if case.out_channels else dict(zip(GEOMETRY, case.geometry, strict=True))


@dataclass(frozen=True)
class BackwardSample:
    """A call of a convolution's backward op: what surrounds the convolution, and its arguments."""

    case: ConvCase
    dtype: torch.dtype
    arguments: dict[str, Any]
    prologue: ScaleShiftAct | None
    epilogue: ScaleShiftAct | None

    def grad_raw(self, magnitude: bool = False) -> Tensor:
        """The gradient of the convolution's raw output, from that of its activated output."""
        a = self.arguments
        size = torch.abs if magnitude else torch.clone
        grad = size(a["grad_output"].double())
        if a["output"] is None:
            return grad
        raw = a["output"].double()
        if self.epilogue:
            y = self.epilogue.before_activation(raw)
            grad = oracle.masked_gradient(grad, y, self.epilogue.activation)
        grad = size(oracle.per_channel(a["grad_scale"])) * grad
        if a["raw_scale"] is not None:
            grad = grad + size(oracle.per_channel(a["raw_scale"]) * raw)
            grad = grad + size(oracle.per_channel(a["raw_shift"]))
        return grad

    def expected(self, magnitude: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """grad_input, grad_weight, grad_sum, grad_dot; or sums of the magnitudes of their terms."""
        a = self.arguments
        x, weight = a["input"].double(), a["weight"].double()
        z, grad_raw = self.prologue(x) if self.prologue else x, self.grad_raw(magnitude)
        if magnitude:
            z = self.prologue.magnitude(x) if self.prologue else x.abs()
            weight = weight.abs()
        z, weight = z.detach().requires_grad_(), weight.requires_grad_()
        with torch.enable_grad():
            raw = oracle.convolution(z, weight, self.case)
        grad_input, grad_weight = torch.autograd.grad(raw, (z, weight), grad_raw)
        if self.prologue:
            y = self.prologue.before_activation(x)
            grad_input = oracle.masked_gradient(grad_input, y, self.prologue.activation)
        if a["input_mean"] is None:
            nothing = torch.empty(0, dtype=torch.float64)
            return grad_input, grad_weight, nothing, nothing
        centred = x - oracle.per_channel(a["input_mean"])
        if magnitude:
            centred = centred.abs()
        return (
            grad_input,
            grad_weight,
            grad_input.sum((0, 2, 3)),
            (grad_input * centred).sum((0, 2, 3)),
        )


def make_backward_sample(
    case: ConvCase,
    dtype: torch.dtype = torch.float32,
    *,
    prologue: bool = True,
    epilogue: bool = True,
    raw_terms: bool = True,
    sums: bool = True,
    need_grad_input: bool = True,
    need_grad_weight: bool = True,
) -> BackwardSample:
    """Random arguments for a convolution between two BatchNorms with activations, or less.

    `prologue` and `epilogue`: the BatchNorms are there; `raw_terms`: the one after has used the
    batch's statistics; `sums`: so has the one before, or its parameters want gradients.
    """
    channels = case.channels_after
    before = make_map(case.channels, dtype, case.activation) if prologue else None
    after = make_map(channels, dtype, case.activation) if epilogue else None
    x, weight = make_tensor(case.shape, case.layout, dtype), make_weight(case, dtype)
    raw_shape = oracle.convolution(x, weight, case).shape
    output = make_tensor(raw_shape, _layout_of_output(case), dtype) if epilogue else None
    arguments = {
        "grad_output": make_tensor(raw_shape, case.grad_layout, dtype),
        "output": output,
        **(after.arguments("output") if after else no_map("output")),
        "grad_scale": make_vector(channels, -2, 2, dtype) if epilogue else None,
        "raw_scale": make_vector(channels, -1, 1, dtype) if epilogue and raw_terms else None,
        "raw_shift": make_vector(channels, -1, 1, dtype) if epilogue and raw_terms else None,
        "input": x,
        "weight": weight,
        **(before.arguments("input") if before else no_map("input")),
        "input_mean": make_vector(case.channels, -1, 1, dtype) if prologue and sums else None,
        **geometry_arguments(case),
        "need_grad_input": need_grad_input,
        "need_grad_weight": need_grad_weight,
    }
    return BackwardSample(case, dtype, arguments, before, after)


def blocks_arguments(
    case: ConvCase, dtype: torch.dtype = torch.float32, *, of_batch: bool = True, blocks: int = 2
) -> dict[str, Any]:
    """Keyword arguments of `torch.ops.mobilenet_ext.separable_convs`, for a run of equal blocks.

    `of_batch`: all BatchNorms normalise with the batch's statistics, and the output's are wanted;
    not of a single value.
    """
    channels = case.channels
    of_batch = of_batch and case.batch * case.height * case.width > 1

    def vector(given: bool = True) -> Tensor | None:
        return make_vector(channels, 0.5, 2.0, dtype) if given else None

    tensors: list[Tensor | None] = []
    for _ in range(blocks):
        weight = make_tensor((channels, channels, 1, 1), "contiguous", dtype)
        tensors += (make_weight(case, dtype), weight)
        for _ in range(2):
            tensors += (vector(of_batch), vector(of_batch), vector(not of_batch))
            tensors.append(vector(not of_batch))
    return {
        "input": make_tensor(case.shape, case.layout, dtype),
        "mean": vector(of_batch),
        "var": vector(of_batch),
        "tensors": tensors,
        "eps": [1e-3, 1e-5] * blocks,
        "options": [*case.geometry, case.code, 1] * blocks,
        "statistics": of_batch,
    }


def blocks_backward_arguments(
    case: ConvCase,
    dtype: torch.dtype = torch.float32,
    *,
    of_batch: bool = True,
    needs: Sequence[bool] = (True,) * 4,
    need_input: bool = True,
    blocks: int = 2,
) -> dict[str, Any]:
    """Keyword arguments of `torch.ops.mobilenet_ext.separable_convs_backward`."""
    maps, weights, vectors = [], [], []
    x = make_tensor(case.shape, case.layout, dtype)
    for _ in range(blocks):
        depthwise, channels = make_weight(case, dtype), case.channels
        raw_shape = oracle.convolution(x, depthwise, case).shape
        raw = make_tensor(raw_shape, _layout_of_output(case), dtype)
        maps += [x, raw]
        weights += [depthwise, make_tensor((channels, channels, 1, 1), "contiguous", dtype)]
        for _ in range(2):
            affine = make_map(channels, dtype, case.activation)
            mean, invstd = (make_vector(channels, 0.5, 2.0, dtype) for _ in range(2))
            vectors += [affine.scale, affine.shift, mean, invstd]
        x = make_tensor(raw_shape, _layout_of_output(case), dtype)
    return {
        "grad_output": make_tensor(raw_shape, case.grad_layout, dtype),
        "maps": maps,
        "weights": weights,
        "vectors": vectors,
        "options": [*case.geometry, case.code, case.code] * blocks,
        "flags": [of_batch, of_batch, *needs] * blocks,
        "need_input": need_input,
    }


def _layout_of_output(case: ConvCase) -> str:
    """The convolution's raw output is a tensor that an op has made, so never an expanded one."""
    return "channels_last" if case.grad_layout.startswith("expanded") else case.grad_layout
