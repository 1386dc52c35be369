"""The lists that the ops of a run of blocks take and give: so many entries a block, in this order.

The ops' schemas know lists of tensors and of numbers only. csrc/bindings/separable_convs.h says the
same in C++.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from .batch_norm import Vectors
from .geometry import Conv

T = TypeVar("T")


class BlockTensors(NamedTuple):
    """Two weights and two BatchNorms; those without a running mean take the batch's statistics."""

    depthwise_weight: Tensor
    pointwise_weight: Tensor
    input_bn: Vectors
    bn: Vectors


class BlockOptions(NamedTuple):
    """Geometry of the depthwise convolution, activations after both BatchNorms."""

    conv: Conv
    input_activation: int
    activation: int


class Applied(NamedTuple):
    """What was computed of a BatchNorm, [C] each; unbiased_var is [0] with running statistics."""

    scale: Tensor
    shift: Tensor
    invstd: Tensor
    unbiased_var: Tensor


class BlockResults(NamedTuple):
    """Output with mean and biased variance, raw depthwise output with mean, and both BatchNorms."""

    output: Tensor
    mean: Tensor
    var: Tensor
    raw: Tensor
    raw_mean: Tensor
    input_bn: Applied
    bn: Applied


class Normalised(NamedTuple):
    """What the backward needs of a BatchNorm, [C] each."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    invstd: Tensor


class BlockFlags(NamedTuple):
    """Whose statistics are the batch's, and which gradients are needed."""

    input_of_batch: bool
    of_batch: bool
    need_depthwise_weight: bool
    need_pointwise_weight: bool
    need_input_bn: bool
    need_bn: bool

    @property
    def needs(self) -> tuple[bool, ...]:
        """All that say which gradients are needed."""
        return self[2:]


class BlockGradients(NamedTuple):
    """Of both weights, then of weight and bias of both BatchNorms; [0] where not needed."""

    depthwise_weight: Tensor
    pointwise_weight: Tensor
    input_bn_weight: Tensor
    input_bn_bias: Tensor
    bn_weight: Tensor
    bn_bias: Tensor


def block_tensors(tensors: Sequence[Any]) -> list[BlockTensors]:
    """Cut what separable_convs takes, or anything that pairs up with it."""
    return _cut(tensors, 10, lambda *x: BlockTensors(x[0], x[1], Vectors(*x[2:6]), Vectors(*x[6:])))


def block_options(options: Sequence[int]) -> list[BlockOptions]:
    """Cut what both ops take."""
    return _cut(options, 8, lambda *x: BlockOptions(Conv(*x[:6]), *x[6:]))


def block_results(results: Sequence[Tensor]) -> list[BlockResults]:
    """Cut what separable_convs gives."""
    return _cut(results, 13, _block_results)


def result_columns(results: Sequence[Tensor]) -> Any:
    """Cut what separable_convs gives by field: BlockResults of lists with an entry a block."""
    return _block_results(*_columns(results, 13))


def tensor_columns(tensors: Sequence[Any]) -> Any:
    """Cut what separable_convs takes by field: BlockTensors of lists with an entry a block."""
    x: list[Any] = _columns(tensors, 10)
    return BlockTensors(x[0], x[1], Vectors(*x[2:6]), Vectors(*x[6:]))


def interleave(*columns: Iterable[T]) -> list[T]:
    """Put columns together again, entry by entry."""
    return list(chain.from_iterable(zip(*columns, strict=True)))


def block_vectors(vectors: Sequence[Tensor]) -> list[tuple[Normalised, Normalised]]:
    """Cut what separable_convs_backward takes: of input_bn and of bn."""
    return _cut(vectors, 8, lambda *x: (Normalised(*x[:4]), Normalised(*x[4:])))


def block_flags(flags: Sequence[int]) -> list[BlockFlags]:
    """Cut what separable_convs_backward takes."""
    return _cut(flags, 6, lambda *x: BlockFlags(*map(bool, x)))


def block_gradients(gradients: Sequence[Tensor]) -> list[BlockGradients]:
    """Cut what separable_convs_backward gives after the gradient of the input."""
    return _cut(gradients, 6, BlockGradients)


def _block_results(*x: Any) -> BlockResults:
    output, mean, var, raw, raw_mean = x[:5]
    return BlockResults(output, mean, var, raw, raw_mean, Applied(*x[5:9]), Applied(*x[9:]))


def _columns(items: Sequence[T], length: int) -> list[Sequence[T]]:
    return [items[i::length] for i in range(length)]


def _cut(items: Sequence[Any], length: int, make: Callable[..., T]) -> list[T]:
    return [make(*items[i : i + length]) for i in range(0, len(items), length)]
