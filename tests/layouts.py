"""How a tensor [N, C, H, W] may lie in memory: between NaN, or as a view that repeats itself."""

from collections.abc import Sequence

import torch
from torch import Tensor


def in_nan(shape: Sequence[int], dtype: torch.dtype, offset: int) -> Tensor:
    """An uninitialised contiguous tensor, `offset` elements into a buffer of NaN."""
    count = torch.Size(shape).numel()
    buffer = torch.full((offset + count + 64,), torch.nan, dtype=dtype)
    return buffer[offset : offset + count].view(shape)


def _dense_nhwc(values: Tensor, offset: int) -> Tensor:
    n, c, h, w = values.shape
    return in_nan((n, h, w, c), values.dtype, offset).permute(0, 3, 1, 2).copy_(values)


def _contiguous(values: Tensor, offset: int = 64) -> Tensor:
    return in_nan(values.shape, values.dtype, offset).copy_(values)


def _sliced(values: Tensor) -> Tensor:
    n, c, h, w = values.shape
    wide = torch.full((n, h + 2, 2 * w + 1, c), torch.nan, dtype=values.dtype)
    return wide.permute(0, 3, 1, 2)[:, :, 1:-1, 1::2].copy_(values)


def _sliced_channels(values: Tensor) -> Tensor:
    n, c, h, w = values.shape
    wide = torch.full((n, h, w, c + 5), torch.nan, dtype=values.dtype)
    return wide.permute(0, 3, 1, 2)[:, 2 : 2 + c].copy_(values)


def _transposed(values: Tensor) -> Tensor:
    return _contiguous(values.transpose(2, 3)).transpose(2, 3)


LAYOUTS = {
    "channels_last": lambda values: _dense_nhwc(values, 64),
    "contiguous": _contiguous,
    "sliced": _sliced,
    "sliced_channels": _sliced_channels,
    "transposed": _transposed,
    "expanded_batch": lambda values: values[:1].expand(values.shape),
    "expanded_map": lambda values: values[:, :, :1, :1].expand(values.shape),
    "expanded_all": lambda values: values.flatten()[:1].view(1, 1, 1, 1).expand(values.shape),
    "misaligned": lambda values: _dense_nhwc(values, 1),
    "misaligned_contiguous": lambda values: _contiguous(values, 1),
}
