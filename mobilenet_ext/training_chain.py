"""The layers of a FusedMobileNet in order, and what they take when they run as one chain.

To read the weights, modes and settings of 27 layers takes some 0.3 ms, as long as a block takes at
32 x 32 pixels. So they are read once, and again when a look in C++ tells that an attribute of a
block, layer, convolution or BatchNorm is another object than before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from . import _C, dispatch, nn
from .batch_norm import BatchNorm
from .casts import autocast_together
from .chain import Link, Run, blocks_of_a_size, make_run
from .layers import ConvBNReLU, SeparableBlock


class Prepared(NamedTuple):
    """The blocks, every BatchNorm from the stem's to the last, and their counters of batches."""

    run: Run
    norms: list[BatchNorm]
    counters: list[Tensor]


class _Look:
    """What the layers held when they were looked at."""

    def __init__(self, layers: Sequence[ConvBNReLU], modules: Sequence[Module]) -> None:
        self._dicts: list[dict[str, Any]] = [
            attributes
            for module in modules
            for attributes in (module.__dict__, module._parameters, module._buffers)
            if attributes
        ]
        self._stamp = _C.stamp_objects(self._dicts)
        # Kept, so that no other object gets the address of one that was seen.
        self._attributes = [x for attributes in self._dicts for x in attributes.values()]
        # torch.func.functional_call lends tensors for a call, which must not outlive it here.
        self.may_last = all(
            x is None or isinstance(x, torch.nn.Parameter)
            for module in modules
            for x in module._parameters.values()
        )
        self.may_run = _may_run(layers, modules)
        self.prepared: tuple[Sequence[int], Prepared] | None = None
        """What the blocks take for raw stem outputs of a size."""

    def is_current(self) -> bool:
        return _C.stamp_objects(self._dicts) == self._stamp


class TrainingChain:
    """Stem and blocks, depthwise and pointwise layers in turn.

    Threads may share it: whatever they read of `_look`, they read once.
    """

    def __init__(self, layers: Sequence[ConvBNReLU], blocks: Sequence[SeparableBlock]) -> None:
        """Take the layers, and the blocks that they are in; nothing is read yet."""
        self.layers = layers
        self._modules = [*blocks, *(module for x in layers for module in (x, x.conv, x.bn))]
        self._look: _Look | None = None

    def may_run(self) -> bool:
        """Tell whether the kernels compute all that the layers do; before `start_batch`."""
        if torch.compiler.is_compiling():  # which follows Python only
            return _may_run(self.layers, self._modules)
        look = self._look
        if look is None or not look.is_current():
            look = _Look(self.layers, self._modules)
            self._look = look if look.may_last else None
        return look.may_run

    def start_batch(self, size: Sequence[int], device: torch.device) -> Prepared:
        """Count a batch and return what the blocks take; the stem's output has that size."""
        if torch.compiler.is_compiling() or dispatch.is_autocast_enabled(device):
            return self._prepare(size, autocast=True)
        look = self._look
        if look is not None and look.prepared is not None:
            known_size, prepared = look.prepared
            if known_size == size:
                nn.count(prepared.counters)
                return prepared
        prepared = self._prepare(size, autocast=False)
        if (
            look is not None
            and all(map(_is_settled, prepared.norms, self.layers))
            and look.is_current()  # another thread may have changed a layer meanwhile
        ):
            look.prepared = (size, prepared)
        return prepared

    def forget(self) -> None:
        """Let go of the tensors that were read."""
        self._look = None

    def _prepare(self, size: Sequence[int], *, autocast: bool) -> Prepared:
        counters = nn.counters(x.bn for x in self.layers)
        nn.count(counters)
        norms = [nn.read_batch_norm(x.bn, x.activation) for x in self.layers]
        weights: list[Tensor] = [x.conv.weight for x in self.layers]
        links: list[Link] = []
        for i in range(1, len(weights), 2):
            conv = self.layers[i].geometry(size)
            size = conv.output_size(size, weights[i].shape[2])
            links.append(Link(weights[i], weights[i + 1], conv, norms[i - 1], norms[i]))
        if autocast:
            _cast_weights(links)
        return Prepared(make_run(links, norms[-1].training), norms, counters)


def _may_run(layers: Sequence[ConvBNReLU], modules: Sequence[Module]) -> bool:
    return all(map(nn.is_plain, layers)) and not any(map(nn.has_own_forward, modules))


def _cast_weights(links: list[Link]) -> None:
    """Cast the blocks' weights for autocast, those of blocks of a size together.

    Their gradients come at the same time, and none waits for blocks later in the backward.
    """
    for first, end in blocks_of_a_size(links):
        blocks = links[first:end]
        weights = iter(autocast_together([weight for link in blocks for weight in link[:2]]))
        links[first:end] = [
            link._replace(depthwise_weight=next(weights), pointwise_weight=next(weights))
            for link in blocks
        ]


def _is_settled(norm: BatchNorm, layer: ConvBNReLU) -> bool:
    """Tell whether a BatchNorm was read from attributes alone, not from counters or processes."""
    return not (isinstance(norm.momentum, Tensor) or isinstance(layer.bn, torch.nn.SyncBatchNorm))
