#!/usr/bin/env python3
"""Measure `depthwise_conv_bn_relu` on MobileNet's nine depthwise layers against stock PyTorch.

    python benchmarks/ops.py                       # under a minute
    python benchmarks/ops.py --batch 32 --threads 1 --json results/ops.json

GB/s counts the least traffic that the op allows; "% copy" compares it with a copy of the same
number of bytes, measured in the same rounds. Every value is verified in float64 first.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence

import machine
import report
import torch
import torch.nn.functional as F
from layers import DEPTHWISE, Layer
from points import DTYPES
from progress import Progress
from timing import Timing, interleave
from torch import Tensor

from mobilenet_ext.functional import depthwise_conv_bn_relu

EPS, MOMENTUM = 1e-3, 0.01
# Tensor traffic of the least passes, in (inputs, outputs): inference reads x and writes y; training
# also writes and reads the raw output; backward reads (grad, raw) twice, then x, and writes dx.
TRAFFIC = {"inference": (1, 1), "forward": (1, 3), "forward+backward": (3, 7)}
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.1}

Op = Callable[..., Tensor]


@dataclasses.dataclass
class Row:
    """One layer in one mode."""

    layer: str
    mode: str
    ms: float
    gb_per_s: float
    percent_of_copy: float
    stock_ratio: float  # the faster layout of stock PyTorch over ours
    disagreement: str = ""


def stock(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    layer: Layer,
    training: bool,
) -> Tensor:
    """Return relu6(bn(depthwise_conv(x))) from stock ops."""
    left, right, top, bottom = layer.padding
    even = left == right == top == bottom
    x = x if even else F.pad(x, (left, right, top, bottom))
    raw = F.conv2d(x, weight, None, layer.stride, left if even else 0, groups=x.shape[1])
    stats = (running_mean, running_var)
    return F.relu6(F.batch_norm(raw, *stats, bn_weight, bn_bias, training, MOMENTUM, EPS))


def ours(x: Tensor, *vectors: Tensor, layer: Layer, training: bool) -> Tensor:
    """Return the same from our kernels."""
    return depthwise_conv_bn_relu(
        x,
        *vectors,
        stride=layer.stride,
        padding=layer.padding,
        training=training,
        momentum=MOMENTUM,
        eps=EPS,
    )


def make_inputs(layer: Layer, options: argparse.Namespace) -> list[Tensor]:
    """Return x [N, C, H, W], weight [C, 1, 3, 3] and gamma, beta, running mean and var [C]."""
    generator, channels = torch.Generator().manual_seed(0), layer.channels
    dtype = DTYPES[options.dtype]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(options.device)

    x = normal(options.batch, channels, layer.size, layer.size).to(dtype)
    weight = normal(channels, 1, 3, 3).to(dtype)
    variance = normal(channels).abs() * 3 + 3
    return [x, weight, normal(channels) + 2, normal(channels) + 1, normal(channels), variance]


def runner(op: Op, tensors: list[Tensor], layer: Layer, mode: str) -> Callable[[], list[Tensor]]:
    """Return a call that yields the output and, after a backward, the four gradients."""
    training = mode != "inference"
    tensors = [tensor.clone() for tensor in tensors]

    def forward() -> list[Tensor]:
        with torch.inference_mode():
            return [op(*tensors, layer=layer, training=training)]

    if mode != "forward+backward":
        return forward
    wanted = [tensor.requires_grad_() for tensor in tensors[:4]]
    with torch.no_grad():
        y = op(*tensors, layer=layer, training=training)
    generator = torch.Generator().manual_seed(1)
    grad = torch.empty_like(y).copy_(torch.randn(y.shape, generator=generator))

    def both() -> list[Tensor]:
        output = op(*tensors, layer=layer, training=training)
        return [output.detach(), *torch.autograd.grad(output, wanted, grad)]

    return both


def disagreement(found: list[Tensor], expected: list[Tensor], dtype: str) -> str:
    """Return what differs from the float64 values by more than the tolerance, or nothing."""
    names = ("output", "grad x", "grad weight", "grad bn_weight", "grad bn_bias")
    for name, got, want in zip(names, found, expected, strict=False):
        # By norm: a value that rounding moves across ReLU6's kink changes its own gradient fully.
        error = ((got.double() - want).norm() / want.norm()).item()
        limit = TOLERANCE[dtype] * (1 if name == "output" else 30)
        if not error <= limit:
            return f"{name}: relative error {error:.2g}, allowed {limit:g}"
    return ""


def measure(layer: Layer, mode: str, options: argparse.Namespace) -> Row:
    """Verify and time one layer in one mode."""
    inputs = make_inputs(layer, options)
    nhwc = [inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:]]
    exact = runner(stock, [tensor.double() for tensor in inputs], layer, mode)()
    in_x, in_y = TRAFFIC[mode]
    elements = options.batch * (in_x * layer.input_elements + in_y * layer.output_elements)
    size = elements * inputs[0].element_size()
    source = torch.zeros(size // 2, dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    mine = runner(ours, nhwc, layer, mode)
    wrong = disagreement(mine(), exact, options.dtype)
    if wrong:
        return Row(layer.name, mode, 0.0, 0.0, 0.0, 0.0, wrong)
    timings = interleave(
        {
            "ours": mine,
            "stock NHWC": runner(stock, nhwc, layer, mode),
            "stock NCHW": runner(stock, inputs, layer, mode),
            "copy": lambda: target.copy_(source),
        },
        rounds=options.rounds,
        min_time=options.min_time,
        synchronize=torch.cuda.synchronize if options.device.startswith("cuda") else None,
    )
    return row_of(layer, mode, timings, size)


def row_of(layer: Layer, mode: str, timings: dict[str, Timing], size: int) -> Row:
    """Turn the timings of one layer into a row; `size` is the least traffic in bytes."""
    best = timings["ours"]
    ratio = min(timings[name].ratio_to(best) for name in ("stock NHWC", "stock NCHW"))
    percent = 100 * timings["copy"].ratio_to(best)
    return Row(layer.name, mode, best.median, size / best.median / 1e6, percent, ratio)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 when a value was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", nargs="+", choices=TRAFFIC, default=list(TRAFFIC))
    names = [layer.name for layer in DEPTHWISE]
    parser.add_argument("--layers", nargs="+", choices=names, default=names, metavar="H/S/C")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--min-time", type=float, default=0.2, help="seconds of each contender")
    parser.add_argument("--json", type=pathlib.Path, metavar="PATH")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = []
    chosen = [layer for layer in DEPTHWISE if layer.name in options.layers]
    with Progress("depthwise layers", len(chosen) * len(options.mode)) as progress:
        for mode in options.mode:
            for layer in chosen:
                rows.append(measure(layer, mode, options))
                progress.step(layer.name)
    show(rows)
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        content = [dataclasses.asdict(row) for row in rows]
        report.write_json(options.json, content, machine.describe(options.device), settings)
        print(f"wrote {options.json}")
    return 1 if any(row.disagreement for row in rows) else 0


def show(rows: list[Row]) -> None:
    """Print the table."""
    print(f"{'layer':<10}  {'mode':<16}  {'ms':>8}  {'GB/s':>6}  {'% copy':>6}  {'x stock':>7}")
    for row in rows:
        numbers = f"{row.ms:8.3f}  {row.gb_per_s:6.1f}  {row.percent_of_copy:6.0f}"
        text = row.disagreement or f"{numbers}  {row.stock_ratio:7.2f}"
        print(f"{row.layer:<10}  {row.mode:<16}  {text}")


if __name__ == "__main__":
    sys.exit(main())
