#!/usr/bin/env python3
"""Show block by block how near the CPU kernels come to the machine's limits.

    python benchmarks/blocks.py                                   # inference, 1.0 at 224 pixels
    python benchmarks/blocks.py --mode training --alpha 0.5 --resolution 32 --batch 32

"% FMA" compares a block's multiply-adds a second with those of a loop of nothing else (on x86, with
a C compiler), "% copy" the bytes that it has to move at least with a copy of as many, both measured
in the same rounds.
Inference is measured as the difference that the block makes to the network up to it, training as
the block by itself, forward and backward.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast

import machine
import torch
from fma_peak import FmaPeak, fma_peak
from report import write_json
from timing import interleave
from torch import Tensor

from mobilenet_ext import MobileNet
from mobilenet_ext.folding import fold, fold_block
from mobilenet_ext.layers import SeparableBlock
from mobilenet_ext.packed_network import PackedNetwork

ops = torch.ops.mobilenet_ext
FLOAT = 4  # bytes
SHOWN = ("block", "mode", "ms", "% FMA", "% copy")


@dataclass
class Row:
    """One block in one mode."""

    block: str
    mode: str
    ms: float
    fma: float
    """Share of the peak, 0 to 1."""
    copy: float
    """Share of the bandwidth, 0 to 1."""


@dataclass(frozen=True)
class Block:
    """A block of MobileNet on its map."""

    batch: int
    channels: int
    filters: int
    size: int
    stride: int

    @property
    def name(self) -> str:
        """Return e.g. `112x112x32 -> 64, stride 1`."""
        return f"{self.size}x{self.size}x{self.channels} -> {self.filters}, stride {self.stride}"

    @property
    def input(self) -> int:
        """Values of the input."""
        return self.batch * self.channels * self.size**2

    @property
    def between(self) -> int:
        """Values between the two convolutions."""
        return self.batch * self.channels * self.output_size**2

    @property
    def output(self) -> int:
        """Values of the output."""
        return self.batch * self.filters * self.output_size**2

    @property
    def output_size(self) -> int:
        """Height and width after the stride."""
        return -(-self.size // self.stride)

    @property
    def multiply_adds(self) -> int:
        """Of one forward."""
        return self.between * (9 + self.filters)


def blocks_of(model: MobileNet, batch: int, resolution: int) -> list[Block]:
    """Return the blocks of a network for images of a size."""
    size, result = -(-resolution // 2), []
    for block in cast("Iterable[SeparableBlock]", model.blocks):
        conv, point = block.depthwise.conv, block.pointwise.conv
        result.append(Block(batch, conv.in_channels, point.out_channels, size, conv.stride[0]))
        size = result[-1].output_size
    return result


def inference_runs(model: MobileNet, images: Tensor) -> list[Callable[[], object]]:
    """Return the network's stem, then the stem and one block, and so on."""
    stem, blocks = fold(model.stem), [fold_block(block) for block in model.blocks]
    networks = [PackedNetwork(stem, blocks[:count], ()) for count in range(len(blocks) + 1)]
    return [partial(network.run, images) for network in networks]


def training_runs(block: Block) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the forward and the backward of a block with random values."""
    c, f = block.channels, block.filters
    input = _map(block.batch, c, block.size)
    weights = [torch.randn(c, 1, 3, 3), torch.randn(f, c, 1, 1) / c**0.5]
    mean, var, one, zero = torch.zeros(c), torch.ones(c), torch.ones(c), torch.zeros(c)
    norm = (one, zero, None, None)
    pads = (1, 1, 1, 1) if block.stride == 1 else (0, 1, 0, 1)
    options = [block.stride, *pads, 1, 2, 2]
    forward = (input, mean, var, [*weights, *norm, *norm], [1e-3, 1e-3], options, True)
    output, _, _, raw, raw_mean, *applied = ops.separable_convs(*forward)
    vectors = [*applied[:2], mean, applied[2], *applied[4:6], raw_mean, applied[6]]
    backward = (torch.randn_like(output), [input, raw], weights, vectors, options, [1] * 6, True)
    return (
        lambda: ops.separable_convs(*forward),
        lambda: ops.separable_convs_backward(*backward),
    )


def _map(batch: int, channels: int, size: int) -> Tensor:
    map = torch.randn(batch, channels, size, size)
    return map.contiguous(memory_format=torch.channels_last)


def copy_run() -> Callable[[], object]:
    """Return a copy of 64 MB: 128 MB of traffic."""
    source = torch.randn(16 << 20)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def measure(options: argparse.Namespace, peak: FmaPeak) -> list[Row]:
    """Return a row for each block, in inference or in forward and backward."""
    model = MobileNet(options.num_classes, alpha=options.alpha).eval()
    blocks = blocks_of(model, options.batch, options.resolution)
    runs: dict[str, Callable[[], object]] = {"peak": peak, "copy": copy_run()}
    if options.mode == "inference":
        images = _map(options.batch, 3, options.resolution)
        runs |= {f"{i}": run for i, run in enumerate(inference_runs(model, images))}
    else:
        for i, block in enumerate(blocks):
            runs[f"forward {i}"], runs[f"backward {i}"] = training_runs(block)
    with torch.no_grad():
        times = interleave(runs, rounds=options.rounds, min_time=options.min_time)
    fma_rate = peak.flops / 2 / times["peak"].median
    copy_rate = 2 * (16 << 20) * FLOAT / times["copy"].median

    def row(block: Block, mode: str, ms: float, times: int, values: int) -> Row:
        fma = times * block.multiply_adds / ms / fma_rate
        return Row(block.name, mode, ms, fma, values * FLOAT / ms / copy_rate)

    rows = []
    for i, block in enumerate(blocks):
        if options.mode == "inference":
            ms = times[f"{i + 1}"].median - times[f"{i}"].median
            rows.append(row(block, "inference", ms, 1, block.input + block.output))
            continue
        ms = times[f"forward {i}"].median
        moved = block.input + block.between + block.output
        rows.append(row(block, "forward", ms, 1, moved))
        ms = times[f"backward {i}"].median
        moved = 2 * block.input + block.between + block.output
        rows.append(row(block, "backward", ms, 2, moved))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--mode", choices=["inference", "training"], default="inference")
    add("--alpha", type=float, default=1.0)
    add("--resolution", type=int, default=224)
    add("--batch", type=int, default=1)
    add("--num-classes", type=int, default=1000)
    add("--threads", type=int, default=machine.cores(), help="default: all cores")
    add("--rounds", type=int, default=9)
    add("--min-time", type=float, default=0.5, help="seconds of each run (default 0.5)")
    add("--json", type=pathlib.Path, metavar="PATH", help="write the results there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    peak = fma_peak(options.threads)
    if peak is None:
        parser.error("the peak of multiply-adds needs an x86 processor and a C compiler, cc")
    rows = measure(options, peak)
    print(f"{SHOWN[0]:30} {SHOWN[1]:>10} " + " ".join(f"{name:>7}" for name in SHOWN[2:]))
    for row in rows:
        shares = f"{100 * row.fma:7.0f} {100 * row.copy:7.0f}"
        print(f"{row.block:30} {row.mode:>10} {row.ms:7.3f} {shares}")
    if options.json:
        shown = ("mode", "alpha", "resolution", "batch", "threads", "rounds", "min_time")
        settings = {name: getattr(options, name) for name in shown}
        write_json(options.json, [asdict(row) for row in rows], machine.describe(), settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
