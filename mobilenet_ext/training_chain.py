"""The layers of a FusedMobileNet in order, and what they take when they run as one chain.

To read the weights, modes and settings of 27 layers takes some 0.3 ms, as long as a block takes at
32 x 32 pixels. So they are read once, and again when a look in C++ tells that an attribute of a
layer, convolution or BatchNorm is another object than before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _C, dispatch, nn
from .batch_norm import BatchNorm
from .chain import Link, Run, make_run
from .layers import ConvBNReLU


class Prepared(NamedTuple):
    """The blocks, every BatchNorm from the stem's to the last, and their counters of batches."""

    run: Run
    norms: list[BatchNorm]
    counters: list[Tensor]


class TrainingChain:
    """Stem and blocks, depthwise and pointwise layers in turn."""

    def __init__(self, layers: Sequence[ConvBNReLU]) -> None:
        """Take the layers; nothing is read yet."""
        self.layers = layers
        self._modules = [module for x in layers for module in (x, x.conv, x.bn)]
        self._dicts: list[dict[str, Any]] = [
            attributes
            for module in self._modules
            for attributes in (module.__dict__, module._parameters, module._buffers)
        ]
        # Kept, so that no other object gets the address of one that was seen.
        self._attributes: list[Any] = []
        self._stamp: int | None = None
        self._may_run = False
        self._size: Sequence[int] = ()
        self._prepared: Prepared | None = None

    def may_run(self) -> bool:
        """Tell whether the kernels compute all that the layers do; call it before `begin`."""
        if torch.compiler.is_compiling():  # which follows Python only
            return self._have_no_bias()
        stamp = _C.stamp_objects(self._dicts)
        if stamp != self._stamp:
            self._stamp = stamp
            self._attributes = [x for attributes in self._dicts for x in attributes.values()]
            self._may_run = self._have_no_bias()
            self._prepared = None
        return self._may_run

    def begin(self, raw: Tensor) -> Prepared:
        """Count a batch, whose raw stem output is given, and return what the blocks take."""
        size = raw.shape[2:]
        if torch.compiler.is_compiling() or dispatch.is_autocast_enabled(raw.device):
            return self._prepare(size, autocast=True)
        if self._prepared is not None and self._size == size:
            nn.count(self._prepared.counters)
            return self._prepared
        prepared = self._prepare(size, autocast=False)
        if all(map(_is_settled, prepared.norms, self.layers)):
            self._prepared, self._size = prepared, size
        return prepared

    def _have_no_bias(self) -> bool:
        return all(layer.conv.bias is None for layer in self.layers)

    def _prepare(self, size: Sequence[int], *, autocast: bool) -> Prepared:
        counters = nn.counters(x.bn for x in self.layers)
        nn.count(counters)
        norms = [nn.read_batch_norm(x.bn, x.activation) for x in self.layers]
        weights: list[Tensor] = [x.conv.weight for x in self.layers]
        if autocast:
            weights = list(map(dispatch.autocast, weights))
        links: list[Link] = []
        for i in range(1, len(weights), 2):
            conv = self.layers[i].geometry(size)
            size = conv.output_size(size, weights[i].shape[2])
            links.append(Link(weights[i], weights[i + 1], conv, norms[i - 1], norms[i]))
        return Prepared(make_run(links, norms[-1].training), norms, counters)


def _is_settled(norm: BatchNorm, layer: ConvBNReLU) -> bool:
    """Tell whether a BatchNorm was read from attributes alone, not from counters or processes."""
    return not (isinstance(norm.momentum, Tensor) or isinstance(layer.bn, torch.nn.SyncBatchNorm))
