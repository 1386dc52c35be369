"""BatchNorm as two vectors per channel: act(bn(x)) = act(scale * x + shift).

    invstd = 1 / sqrt(var + eps)     scale = weight * invstd     shift = bias - mean * scale

Everything here is [C] and costs a few microseconds a call, so what every step needs is one op. So
are the passes over [N, C, H, W]; see autograd.py for how they meet.
Vectors are float32, or float64 for float64 activations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ops = torch.ops.mobilenet_ext

ACTIVATIONS: dict[str | None, int] = {None: 0, "relu": 1, "relu6": 2}


class BatchNorm(NamedTuple):
    """One BatchNorm and the activation after it, as the functional API takes them.

    weight, bias [C] or None (not affine); running_mean, running_var [C] or None. When training,
    batch statistics normalise and the running ones, where given, are updated in place. momentum may
    be a tensor, [], which is not waited for.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool = False
    momentum: float | Tensor = 0.1
    eps: float = 1e-5
    activation: str | None = "relu6"
    process_group: ProcessGroup | None = None

    @property
    def vectors(self) -> Vectors:
        """Weight, bias, and the mean and variance to normalise with; None for the batch's own."""
        if self.training:
            return Vectors(self.weight, self.bias)
        return Vectors(self.weight, self.bias, self.running_mean, self.running_var)

    @property
    def options(self) -> Options:
        """What is not a tensor."""
        return Options(self.eps, ACTIVATIONS[self.activation], self.process_group)

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of functional.bn_relu, less the process group."""
        names = {"weight": "bn_weight", "bias": "bn_bias"}
        fields = self._asdict()
        del fields["process_group"]
        return {names.get(name, name): value for name, value in fields.items()}

    def update(self, mean: Tensor | None, unbiased_var: Tensor | None) -> None:
        """Move the running statistics towards the batch's by `momentum`; None leaves them."""
        momentum = self.momentum
        for running, batch in ((self.running_mean, mean), (self.running_var, unbiased_var)):
            if running is None or batch is None:
                continue
            if isinstance(momentum, Tensor):
                momentum = momentum.to(batch.dtype)
            if running.dtype == batch.dtype:
                running.lerp_(batch, momentum)
            else:
                running.copy_(torch.lerp(running.to(batch.dtype), batch, momentum))


def update_running(norms: Iterable[BatchNorm], batches: Iterable[Statistics]) -> None:
    """Move the running statistics of BatchNorms at once: a call a momentum, not two a norm.

    Stops with the shorter of both: the last BatchNorm may look after itself.
    """
    together: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    for bn, (batch_mean, batch_var) in zip(norms, batches, strict=False):
        mean, var = bn.running_mean, bn.running_var
        if (
            mean is None
            or var is None
            or batch_mean is None
            or batch_var is None
            or isinstance(bn.momentum, Tensor)
            or mean.dtype != batch_mean.dtype
            or var.dtype != batch_var.dtype
        ):
            bn.update(batch_mean, batch_var)
            continue
        moving, targets = together.setdefault(bn.momentum, ([], []))
        moving += (mean, var)
        targets += (batch_mean, batch_var)
    for momentum, (moving, targets) in together.items():
        torch._foreach_lerp_(moving, targets, momentum)


class Vectors(NamedTuple):
    """The tensors of a BatchNorm; without mean and var the batch's own are taken."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None


class Options(NamedTuple):
    """The part of a BatchNorm + activation that is not a tensor."""

    eps: float
    activation: int
    process_group: ProcessGroup | None = None

    def batch_norm(self, vectors: Vectors) -> BatchNorm:
        """Put vectors and options together again, for the stock path."""
        return BatchNorm(
            *vectors,
            training=vectors.mean is None,
            eps=self.eps,
            activation=list(ACTIVATIONS)[self.activation],
        )


class Statistics(NamedTuple):
    """What the running statistics move towards: mean and unbiased variance, None to leave them."""

    mean: Tensor | None = None
    unbiased_var: Tensor | None = None


class Affine(NamedTuple):
    """A BatchNorm ready to be applied, and what its backward needs. All [C], or None: no norm.

    `total` is the number of values per channel in all ranks, [1], under a process group only.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    mean: Tensor | None = None
    invstd: Tensor | None = None
    total: Tensor | None = None


def vector_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype of per-channel vectors that go with an input."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def affine(
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    count: int = 0,
) -> tuple[Affine, Tensor]:
    """Turn parameters and statistics into scale and shift; the unbiased variance of `count`."""
    parameters = (x if x is None else x.to(mean.dtype) for x in (weight, bias))
    scale, shift, invstd, unbiased_var = _ops.batch_norm_affine(mean, var, *parameters, eps, count)
    return Affine(scale, shift, mean, invstd), unbiased_var


def running_affine(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
) -> Affine:
    """Scale and shift from running statistics, for an input of any dtype."""
    dtype = vector_dtype(input)
    return affine(weight, bias, running_mean.to(dtype), running_var.to(dtype), eps)[0]


def batch_affine(
    raw: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    options: Options,
) -> tuple[Affine, Statistics]:
    """Scale and shift from the statistics of a batch, raw [N, C, H, W], over all ranks.

    Raises:
        ValueError: there is one value per channel, as torch does.
    """
    count = raw.numel() // raw.shape[1]
    if options.process_group is not None:
        mean, var, total = gather_statistics(mean, var, count, options.process_group)
        result, _ = affine(weight, bias, mean, var, options.eps)
        return result._replace(total=total), Statistics(mean, var * (total / (total - 1)))
    if count == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, "
            f"got input size {tuple(raw.shape)}"
        )
    if count == 0:
        result, _ = affine(weight, bias, torch.zeros_like(mean), torch.ones_like(var), 0)
        return result, Statistics()
    result, unbiased_var = affine(weight, bias, mean, var, options.eps, count)
    return result, Statistics(mean, unbiased_var)


def gather_statistics(
    mean: Tensor, var: Tensor, count: int, group: ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Combine mean and biased variance over the ranks of a group; counts may differ, or be 0.

    Chan, Golub, LeVeque 1979: total M2 = sum of M2 + sum of count * (mean - total mean)^2.
    """
    if count == 0:
        mean, var = torch.zeros_like(mean), torch.zeros_like(var)
    local = torch.cat([mean, var, mean.new_full((1,), count)])
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, local, group)
    means, variances, counts = torch.stack(gathered).split([len(mean), len(var), 1], dim=1)
    total = counts.sum(0)
    weights = counts / total
    mean = (weights * means).sum(0)
    var = (weights * (variances + (means - mean).square())).sum(0)
    return mean, var, total
