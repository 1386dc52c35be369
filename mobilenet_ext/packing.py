"""Weights as the whole-network op takes them: one flat array, packed in panels of channels.

    matrix [C', K] -> [C'/16, K, 16], then its bias [C'], zeros past C'
    depthwise [C, 1, 3, 3] -> [9, C], then its bias [C], zeros up to a multiple of 16

A panel is a cache line, which any instruction set reads in whole vectors: one array serves all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 16


def _to_panels(x: Tensor) -> Tensor:
    """Pad the last dimension with zeros to a multiple of PANEL."""
    return F.pad(x, (0, -x.shape[-1] % PANEL))


def pack_matrix(weight: Tensor, bias: Tensor) -> Tensor:
    """Pack a matrix [C', K] and a bias [C']; flat."""
    padded = _to_panels(weight.t())
    panels = padded.unflatten(1, (-1, PANEL)).transpose(0, 1)
    return torch.cat([panels.flatten(), _to_panels(bias)])


def pack_stem(weight: Tensor, bias: Tensor) -> Tensor:
    """Pack a dense kernel [C', C, 3, 3], its patch in the order row, column, channel; flat."""
    return pack_matrix(weight.permute(0, 2, 3, 1).flatten(1), bias)


def pack_depthwise(weight: Tensor, bias: Tensor) -> Tensor:
    """Pack a depthwise kernel [C, 1, 3, 3] and a bias [C]; flat."""
    return torch.cat([_to_panels(weight.flatten(1).t()).flatten(), _to_panels(bias)])


def unpack_matrix(packed: Tensor, rows: int, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take a matrix [rows, depth] and its bias off the front; also return the rest."""
    size = -(-rows // PANEL) * PANEL
    panels, bias, rest = packed.split([size * depth, size, packed.numel() - size * (depth + 1)])
    matrix = panels.view(-1, depth, PANEL).transpose(0, 1).reshape(depth, size)
    return matrix[:, :rows].t(), bias[:rows], rest


def unpack_depthwise(packed: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take a depthwise kernel [channels, 1, 3, 3] and its bias off the front, and the rest."""
    size = -(-channels // PANEL) * PANEL
    taps, bias, rest = packed.split([9 * size, size, packed.numel() - 10 * size])
    weight = taps.view(9, size)[:, :channels].t().reshape(channels, 1, 3, 3)
    return weight, bias[:channels], rest
