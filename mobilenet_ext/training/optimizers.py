"""From a recipe to an optimizer, a schedule of its learning rate and an average of the weights."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ..model import MobileNet
from .flat import FlatGroup, flatten
from .recipe import Recipe


def parameter_groups(recipe: Recipe, model: MobileNet) -> list[dict[str, Any]]:
    """Return the groups of a resolved recipe over all parameters that train.

    Only weights of rank 2 and up decay; the classifier learns at its own share of the rate.
    """
    lr = cast("float", recipe.lr)
    head = list(model.classifier.parameters())
    body = [*model.stem.parameters(), *model.blocks.parameters()]
    groups: list[dict[str, Any]] = []
    for part, factor in ((body, 1.0), (head, cast("float", recipe.classifier_lr))):
        for is_weight in (True, False):
            chosen = [p for p in part if p.requires_grad and (p.ndim > 1) == is_weight]
            if chosen:
                decay = recipe.weight_decay if is_weight else 0.0
                groups.append({"params": chosen, "lr": lr * factor, "weight_decay": decay})
    return groups


def make_optimizer(
    recipe: Recipe, groups: list[dict[str, Any]]
) -> tuple[Optimizer, list[FlatGroup]]:
    """Return the optimizer of a resolved recipe; the flat groups it works on, if it does."""
    momentum = recipe.momentum
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=True), []
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, fused=True), []
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True), []
    flat, groups = flatten(groups)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, momentum=momentum), flat
    # eps is Keras's. Its momentum warms up as torch's does in tf.keras before 2.11; later within
    # a hundred steps.
    return torch.optim.NAdam(groups, eps=1e-7), flat


def make_schedule(recipe: Recipe, optimizer: Optimizer, updates: int) -> LambdaLR:
    """Return the schedule of a resolved recipe, with `updates` of the weights an epoch."""
    total = updates * recipe.epochs
    warm_up = min(round(cast("float", recipe.warmup_epochs) * updates), total)
    falls: dict[str, Callable[[float], float]] = {
        "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
        "linear": lambda done: 1 - done,
        "step": lambda done: 0.1 ** ((done >= 0.5) + (done >= 0.75)),
        "constant": lambda done: 1.0,
    }
    fall = falls[recipe.scheduler]

    def factor(update: int) -> float:
        if update < warm_up:
            return (update + 1) / warm_up
        return fall((update - warm_up) / max(1, total - warm_up))

    return LambdaLR(optimizer, factor)


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of parameters and running statistics.

    Early on the decay is smaller, (1 + n) / (10 + n) after n calls, so that the average does not
    remember the initial weights for long.
    """

    def update(averages: Any, current: Any, count: Any) -> None:
        # Tensors of one dtype; the number of batches is an integer.
        weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, current, weight)
        else:
            torch._foreach_copy_(averages, current)

    return AveragedModel(model, multi_avg_fn=torch.no_grad()(update), use_buffers=True)
