"""Networks for the tests: a stock and a fused MobileNet with the same hostile weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_ext import FusedMobileNet, MobileNet


def randomise(model: nn.Module) -> None:
    """Weights as training leaves them: BatchNorms far from the identity, every layer alive.

    The running statistics are those of random images, off by some; so what a layer gets wrong is
    seen in the logits, and every activation has values on both sides of its kinks.
    """
    generator = torch.Generator().manual_seed(1)

    def uniform(shape: Sequence[int], low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.copy_(uniform(module.weight.shape, -1, 1) * (3 / fan_in) ** 0.5)
        for bn in norms:
            sign = 1 - 2 * (uniform(bn.weight.shape, 0, 1) < 0.2).float()
            bn.weight.copy_(uniform(bn.weight.shape, 0.8, 2.5) * sign)
            bn.bias.copy_(uniform(bn.bias.shape, -0.5, 2.5))
            bn.momentum = 1.0
        model.train()(uniform((4, convolutions[0].in_channels, 64, 64), -1, 1))
        for bn in norms:
            bn.running_mean.add_(bn.running_var.sqrt() * uniform(bn.bias.shape, -0.2, 0.2))
            bn.running_var.mul_(uniform(bn.bias.shape, 0.7, 1.4))
            bn.momentum = momentum


def make_pair(
    dtype: torch.dtype = torch.float32, **config: Any
) -> tuple[MobileNet, FusedMobileNet]:
    """The stock network and its fused twin; narrow, without dropout, unless `config` says so."""
    config = {"num_classes": 7, "alpha": 0.25, "dropout": 0.0} | config
    stock = MobileNet(**config)
    randomise(stock)
    fused = FusedMobileNet(**config)
    fused.load_state_dict(stock.state_dict())
    return stock.to(dtype), fused.to(dtype)


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, C, H, W] in [-1, 1), smooth enough that neighbouring pixels differ."""
    return torch.rand(*shape, dtype=torch.float64).mul(2).sub(1).to(dtype)


def named_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
