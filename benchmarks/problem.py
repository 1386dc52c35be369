"""What every contender of a point gets, and the float64 answer it has to give.

Weights are random but lively: BatchNorm scales and shifts are spread so that ReLU6 clips at both
ends, and the running statistics come from a real batch. A wrong padding, a missing clip or a
swapped statistic then shows in the output.
"""

import statistics
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from points import DTYPES, Point
from torch import Tensor, nn

from mobilenet_ext import MobileNet

GRADIENT = "grad "  # begins the names of gradients among the expected values
# Multiplies the loss of float16 training, whose gradients would underflow.
LOSS_SCALE = 1024.0
# Largest error allowed, relative to the largest expected value (outputs, loss, running statistics).
OUTPUT_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.1}
# Gradients, relative to their norm. Rounding flips ReLU6 masks near the kinks, which moves a few
# tensors by percents: (of any tensor, of the median tensor). Stock PyTorch reaches 0.03 and 0.01 in
# float32, 0.9 and 0.4 in bfloat16, where the check is coarse.
GRADIENT_TOLERANCE = {"float32": (0.1, 0.03), "float16": (0.6, 0.3), "bfloat16": (1.5, 0.6)}


@dataclass
class Problem:
    """Weights, data and expected values of one point."""

    point: Point
    state: dict[str, Tensor]  # float32, on the CPU
    images: Tensor  # [N, 3, R, R], float32, contiguous, on the CPU
    labels: Tensor  # [N], int64
    rows: list[int]  # the images whose logits are compared
    expected: dict[str, Tensor]  # float64

    def build(self, factory: type[MobileNet], *, channels_last: bool) -> MobileNet:
        """Return a `factory` model with this problem's weights, ready for the point's mode."""
        model = construct(factory, self.point)
        model.load_state_dict(self.state)
        model.train(self.point.mode == "training")
        dtype = DTYPES[self.point.dtype] if self.point.mode == "inference" else torch.float32
        model.to(self.point.device, dtype)
        if channels_last:
            cast("Any", model).to(memory_format=torch.channels_last)
        return model

    def inputs(self, *, channels_last: bool) -> Tensor:
        """Return the images [N, 3, R, R] on the device, in the dtype that the mode feeds."""
        dtype = DTYPES[self.point.dtype] if self.point.mode == "inference" else torch.float32
        images = self.images.to(self.point.device, dtype)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied with before backward."""
        return LOSS_SCALE if self.point.dtype == "float16" else 1.0

    def disagreements(self, found: dict[str, Tensor]) -> list[str]:
        """Return one line per value that is not what the float64 reference says, worst first."""
        bad, gradient_errors = [], []
        any_gradient, median_gradient = GRADIENT_TOLERANCE[self.point.dtype]
        for name, want in self.expected.items():
            limit = OUTPUT_TOLERANCE[self.point.dtype]
            error, what = float("inf"), "missing"
            if name in found:
                got = found[name].detach().to("cpu", torch.float64)
                what = f"expected shape {list(want.shape)}, got {list(got.shape)}"
                if got.shape == want.shape:
                    error = self._error(name, got, want)
                    what = f"relative error {error:.2g}"
            if name.startswith(GRADIENT):
                gradient_errors.append(error)
                limit = any_gradient
            if not error <= limit:
                bad.append((error, f"{name}: {what}, allowed {limit:g}"))
        if gradient_errors and not statistics.median(gradient_errors) <= median_gradient:
            error = statistics.median(gradient_errors)
            what = f"relative error {error:.2g}, allowed {median_gradient:g}"
            bad.append((error, f"median gradient: {what}"))
        return [line for _, line in sorted(bad, key=lambda entry: -entry[0])]

    def _error(self, name: str, got: Tensor, want: Tensor) -> float:
        if not name.startswith(GRADIENT):
            return ((got - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
        norms = [value.norm() for key, value in self.expected.items() if key.startswith(GRADIENT)]
        floor = 1e-3 * torch.stack(norms).max()
        return ((got - want).norm() / torch.maximum(want.norm(), floor)).item()


def construct(factory: type[MobileNet], point: Point) -> MobileNet:
    """Return a fresh model; no dropout, so that a training step has one right answer."""
    return factory(point.num_classes, point.alpha, dropout=0.0)


def make_problem(point: Point, seed: int = 0) -> Problem:
    """Return the problem of `point`, its expected values computed by stock PyTorch in float64.

    On the point's device: at batch 256 a CPU would take minutes.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (point.batch, 3, point.resolution, point.resolution)
    images = torch.randn(shape, generator=generator)
    labels = torch.randint(point.num_classes, (point.batch,), generator=generator)
    state = lively_state(point, generator)
    rows = sorted({0, point.batch // 3, point.batch // 2, point.batch - 1})
    problem = Problem(point, state, images, labels, rows, {})
    model = construct(MobileNet, point)
    model.load_state_dict(state)
    model.to(point.device, torch.float64).train(point.mode == "training")
    exact = images.to(point.device, torch.float64)
    if point.mode == "training":
        values = backward_values(model, model(exact), labels.to(point.device))
    else:
        with torch.inference_mode():
            values = {"logits": model(exact[rows])}
    problem.expected = {name: value.cpu() for name, value in values.items()}
    return problem


def lively_state(point: Point, generator: torch.Generator) -> dict[str, Tensor]:
    """Return weights whose activations use the whole range of ReLU6 in every layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        model = construct(MobileNet, point)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        nn.init.uniform_(norm.weight, 1.0, 2.0, generator=generator)
        nn.init.uniform_(norm.bias, 0.0, 4.0, generator=generator)
        norm.momentum = None  # running statistics become those of the one batch below
    # One image at 32 pixels leaves a single value per channel in the last blocks.
    sample = torch.randn(8, 3, point.resolution, point.resolution, generator=generator)
    with torch.no_grad():
        model.train()(sample)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def backward_values(
    model: nn.Module, logits: Tensor, labels: Tensor, scale: float = 1.0
) -> dict[str, Tensor]:
    """Run backward of `scale` times the loss; return what `recorded_values` does."""
    loss = F.cross_entropy(logits, labels)
    (loss * scale).backward()
    return recorded_values(model, loss, scale)


def recorded_values(model: nn.Module, loss: Tensor, scale: float) -> dict[str, Tensor]:
    """Return the loss, every gradient of it and every running statistic that a step has left."""
    values = {"loss": loss.detach().clone()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            values[GRADIENT + name] = parameter.grad.detach() / scale
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            values[name] = buffer.detach().clone()
    return values
