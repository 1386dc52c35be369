"""What the per-layer benchmark runs: the functional op in three modes, and every op by itself.

A case makes calls, each on big tensors of its own, for ours and for stock PyTorch; its values in
float64, from stock ops, say what is right. Traffic is what the op has to read and write at least,
in input and output maps of the layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from layers import Layer
from op_data import Data, Setting
from op_modes import EPS, fused, stock
from torch import Tensor

from mobilenet_ext import reference_ops

RELU6 = 2
ON_VECTORS = ("batch_norm_affine", "batch_norm_gradient_map")
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.1}
GRADIENT_SLACK = 30  # of whole modes: rounding moves values across ReLU6's kinks
# So it does in a backward op, at one value in some 10 million: the norm feels the root of that.
KINK_SLACK = {"float32": 10.0, "float16": 1.0, "bfloat16": 1.0}

Call = Callable[[], list[Tensor]]
Make = Callable[[], Call]  # a call on tensors of its own


@dataclass
class Work:
    """One case at one layer, ready to run."""

    ours: Make
    stock: dict[str, Make]
    exact: Callable[[], list[Tensor]]
    slack: tuple[float, ...]  # times the tolerance, for each value
    names: tuple[str, ...]


def convolution(data: Data) -> list[Any]:
    """Raw output with its statistics."""
    maps = (None, None, 0, None, None, 0)
    return [data.input(), data.weight(), *maps, True, *data.geometry()]


def convolution_after_norm(data: Data) -> list[Any]:
    """Raw output with its statistics, of an input that is normalised and activated on load."""
    maps = (data.scale(), data.shift(), RELU6, None, None, 0)
    return [data.input(), data.weight(), *maps, True, *data.geometry()]


def convolution_before_norm(data: Data) -> list[Any]:
    """Output normalised and activated as it is stored: inference."""
    maps = (None, None, 0, data.scale(), data.shift(), RELU6)
    return [data.input(), data.weight(), *maps, False, *data.geometry()]


def convolution_backward(data: Data) -> list[Any]:
    """Both gradients, through the norms and activations on either side."""
    output = data.output()
    after = (data.gradient(data.output()), output, data.scale(), data.shift(), RELU6)
    norm = data.gradient_terms()
    before = (data.scale(), data.shift(), data.shift(), RELU6)
    return [*after, *norm, data.input(), data.weight(), *before, *data.geometry(), True, True]


def image_patches(data: Data) -> list[Any]:
    """Patches of 3 x 3 pixels."""
    return [data.input(), 3, *data.geometry()[:-1]]


def scale_shift_act(data: Data) -> list[Any]:
    """One pass: normalise and activate."""
    return [data.input(), data.scale(), data.shift(), RELU6]


def backward_reduce(data: Data) -> list[Any]:
    """One pass over gradient and raw map: the two sums of BatchNorm's backward."""
    grad = data.gradient(data.input())
    return [grad, data.input(), data.scale(), data.shift(), RELU6, data.shift()]


def backward(data: Data) -> list[Any]:
    """One pass over gradient and raw map: the gradient of the raw map."""
    grad = data.gradient(data.input())
    return [grad, data.input(), data.scale(), data.shift(), RELU6, *data.gradient_terms()]


def norm_of_statistics(data: Data) -> list[Any]:
    """Scale and shift of a BatchNorm from mean and variance."""
    return [data.shift(), data.scale().abs(), data.scale(), data.shift(), EPS, 100]


def gradient_of_sums(data: Data) -> list[Any]:
    """The terms of a BatchNorm's gradient from its two sums."""
    return [data.shift(), data.shift(), data.scale(), data.shift(), data.scale(), 100]


@dataclass(frozen=True)
class OpCase:
    """One op with one choice of arguments."""

    op: str
    arguments: Callable[[Data], list[Any]]
    traffic: tuple[int, int]

    def work(self, layer: Layer, setting: Setting) -> Work:
        """Make the arguments."""
        arguments = self.arguments(Data(layer, setting))
        op = getattr(torch.ops.mobilenet_ext, self.op)

        def ours() -> Call:
            own = [copied(argument) for argument in arguments]
            return lambda: as_list(op(*own))

        def in_stock_ops() -> Call:
            return lambda: as_list(getattr(reference_ops, self.op)(*arguments))

        def exact() -> list[Tensor]:
            return as_list(getattr(reference_ops, self.op)(*map(in_double, arguments)))

        stock = {"stock ops": in_stock_ops} if self.op in ON_VECTORS else {}
        slack = (KINK_SLACK[setting.dtype] if self.op.endswith("backward") else 1.0,) * 4
        return Work(ours, stock, exact, slack, tuple(f"result {i}" for i in range(4)))


@dataclass(frozen=True)
class ModeCase:
    """depthwise_conv_bn_relu as a user calls it, against both layouts of stock PyTorch."""

    training: bool
    gradients: bool
    traffic: tuple[int, int]

    def work(self, layer: Layer, setting: Setting) -> Work:
        """Make x [N, C, H, W], weight, and gamma, beta, running mean and var [C]."""
        data = Data(layer, setting)
        x, weight = data.input(), data.weight()
        variance = data.normal(layer.channels).abs() * 3 + 3
        vectors = [data.scale(), data.shift(), data.normal(layer.channels), variance]

        def make(op: Callable[..., Tensor], x: Tensor) -> Make:
            return lambda: self.call(op, layer, [x, weight, *vectors])

        def exact() -> list[Tensor]:
            return self.call(stock, layer, [t.double() for t in [nchw, weight, *vectors]])()

        nchw, nhwc = x.contiguous(), x.contiguous(memory_format=torch.channels_last)
        return Work(
            make(fused, x),
            {"stock NHWC": make(stock, nhwc), "stock NCHW": make(stock, nchw)},
            exact,
            (1.0, *[float(GRADIENT_SLACK)] * 4),
            ("output", "grad x", "grad weight", "grad bn_weight", "grad bn_bias"),
        )

    def call(self, op: Callable[..., Tensor], layer: Layer, tensors: Sequence[Tensor]) -> Call:
        """Return a call that yields the output and, after a backward, the four gradients."""
        own = [tensor.clone() for tensor in tensors]
        options = {"layer": layer, "training": self.training}

        def forward() -> list[Tensor]:
            with torch.inference_mode():
                return [op(*own, **options)]

        if not self.gradients:
            return forward
        wanted = [tensor.requires_grad_() for tensor in own[:4]]
        with torch.no_grad():
            y = op(*own, **options)
        generator = torch.Generator(y.device).manual_seed(1)
        shape = y.permute(0, 2, 3, 1).shape
        noise = torch.randn(shape, generator=generator, device=y.device).permute(0, 3, 1, 2)
        grad = torch.empty_like(y).copy_(noise)

        def both() -> list[Tensor]:
            output = op(*own, **options)
            return [output.detach(), *torch.autograd.grad(output, wanted, grad)]

        return both


def copied(argument: Any) -> Any:
    """Return a map of its own; vectors and weights are small and shared."""
    return argument.clone() if isinstance(argument, Tensor) and argument.shape[2:] else argument


def in_double(argument: Any) -> Any:
    """Return a tensor in float64, in the layout for which stock kernels are at their best."""
    return argument.double().contiguous() if isinstance(argument, Tensor) else argument


def as_list(result: Any) -> list[Tensor]:
    """Return one result or several as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


def disagreement(found: Sequence[Tensor], exact: Sequence[Tensor], work: Work, dtype: str) -> str:
    """Return what differs from the float64 values by more than the tolerance, or nothing."""
    values = zip(work.names, work.slack, found, exact, strict=False)
    for name, slack, got, want in values:
        if got.shape != want.shape:
            return f"{name}: expected shape {list(want.shape)}, got {list(got.shape)}"
        if not want.numel():
            continue
        # By norm: a value that rounding moves across a kink changes its own gradient fully.
        error = ((got.double() - want).norm() / want.norm()).item()
        limit = TOLERANCE[dtype] * slack
        if not error <= limit:
            return f"{name}: relative error {error:.2g}, allowed {limit:g}"
    return ""


MODES = {
    "inference": ModeCase(training=False, gradients=False, traffic=(1, 1)),
    # The raw output is written, read again and normalised; backward reads (grad, raw) twice.
    "forward": ModeCase(training=True, gradients=False, traffic=(1, 3)),
    "forward+backward": ModeCase(training=True, gradients=True, traffic=(3, 7)),
}
OPS = {
    "conv-statistics": OpCase("depthwise_conv", convolution, (1, 1)),
    "norm-conv-statistics": OpCase("depthwise_conv", convolution_after_norm, (1, 1)),
    "conv-norm": OpCase("depthwise_conv", convolution_before_norm, (1, 1)),
    "conv-backward": OpCase("depthwise_conv_backward", convolution_backward, (2, 2)),
    "batch-norm-statistics": OpCase("batch_norm_statistics", lambda data: [data.input()], (1, 0)),
    "scale-shift-act": OpCase("scale_shift_act", scale_shift_act, (2, 0)),
    "scale-shift-act-reduce": OpCase("scale_shift_act_backward_reduce", backward_reduce, (2, 0)),
    "scale-shift-act-backward": OpCase("scale_shift_act_backward", backward, (3, 0)),
}
# On [C] alone: they have no bandwidth to speak of; stock PyTorch takes a launch for each operation.
VECTOR_OPS = {
    "batch-norm-affine": OpCase("batch_norm_affine", norm_of_statistics, (0, 0)),
    "batch-norm-gradient-map": OpCase("batch_norm_gradient_map", gradient_of_sums, (0, 0)),
}
# Of an image, which none of the layers is.
IMAGE_OPS = {"image-patches": OpCase("image_patches", image_patches, (0, 0))}
CASES: dict[str, ModeCase | OpCase] = {**MODES, **OPS, **VECTOR_OPS}
