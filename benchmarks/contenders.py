"""The contenders: ours and those that need nothing but PyTorch; `runtimes.py` has the others.

A builder takes a problem and returns a contender, or raises: `NotAvailable` when the contender
does not apply here, anything else when it broke. Add one to `INFERENCE` or `TRAINING` to enter it.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from points import DTYPES, Point
from problem import Problem, backward_values
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mobilenet_ext import FusedMobileNet, MobileNet
from mobilenet_ext._library import cuda_status, has_kernels

OURS = "mobilenet_ext"


class NotAvailable(Exception):
    """This contender cannot take part, and the message says why."""


@dataclass
class Contender:
    """Something that can be timed, and checked before."""

    run: Callable[[], object]  # one forward pass, in the mode of the point, or one training step
    check: Callable[[], dict[str, Tensor]]  # the values to compare with `Problem.expected`


Builder = Callable[[Problem], Contender]


def mode_of(point: Point) -> contextlib.AbstractContextManager[object]:
    """Return what `run` is called in: entered once for many calls, as it takes some 5 us."""
    return torch.inference_mode(point.mode == "inference")


def forward_of(model: Callable[[Tensor], Tensor], problem: Problem, images: Tensor) -> Contender:
    """Return the contender that runs `model` on `images`."""

    def check() -> dict[str, Tensor]:
        with mode_of(problem.point):
            return {"logits": model(images)[problem.rows]}

    return Contender(lambda: model(images), check)


def fused(problem: Problem) -> FusedMobileNet:
    """Return our model, or raise `NotAvailable` where it would run stock PyTorch ops."""
    if not has_kernels(torch.device(problem.point.device)):
        raise NotAvailable(f"not every op has a kernel here; CUDA library: {cuda_status()}")
    return cast("FusedMobileNet", problem.build(FusedMobileNet, channels_last=True))


def mobilenet_ext(problem: Problem) -> Contender:
    """FusedMobileNet in eval mode, as it comes."""
    model = fused(problem)
    return forward_of(model, problem, problem.inputs(channels_last=True))


def mobilenet_ext_freeze(problem: Problem) -> Contender:
    """`FusedMobileNet.freeze()`."""
    model = fused(problem).freeze()
    return forward_of(model, problem, problem.inputs(channels_last=True))


def eager(problem: Problem) -> Contender:
    """Stock PyTorch, NCHW."""
    model = problem.build(MobileNet, channels_last=False)
    return forward_of(model, problem, problem.inputs(channels_last=False))


def eager_channels_last(problem: Problem) -> Contender:
    """Stock PyTorch, channels_last."""
    model = problem.build(MobileNet, channels_last=True)
    return forward_of(model, problem, problem.inputs(channels_last=True))


def bn_folded(problem: Problem) -> Contender:
    """Stock PyTorch, channels_last, BatchNorm folded into the convolutions."""
    model = problem.build(MobileNet, channels_last=True)
    for module in list(model.modules()):
        convolution, norm = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(convolution, norm)
            module.bn = nn.Identity()
    cast("Any", model).to(memory_format=torch.channels_last)
    return forward_of(model, problem, problem.inputs(channels_last=True))


def compiled(mode: str | None) -> Builder:
    """Return the builder of `torch.compile(mode=mode)`, with weights frozen for inference."""

    def build(problem: Problem) -> Contender:
        import torch._inductor.config as inductor

        model = problem.build(MobileNet, channels_last=True)
        images = problem.inputs(channels_last=True)
        # The generated loops contain the thread count, the compile cache does not: say it here.
        settings = {"cpp.threads": problem.point.threads}
        if problem.point.mode == "training":
            with inductor.patch(settings):
                contender = training_step(model, torch.compile(model, mode=mode), problem, images)
                values = contender.check()  # compiles, while the settings hold
            return Contender(contender.run, lambda: values)
        contender = forward_of(torch.compile(model, mode=mode), problem, images)
        with inductor.patch(settings | {"freezing": True}), mode_of(problem.point):
            contender.run()
        return contender

    return build


def training_step(
    model: nn.Module, call: Callable[[Tensor], Tensor], problem: Problem, images: Tensor
) -> Contender:
    """Return the contender whose run is forward, cross-entropy, backward and an SGD step.

    Half precision is autocast with float32 weights, as one trains with it; the loss of float16 is
    scaled, by a constant, which plain SGD takes back with its learning rate.
    """
    point = problem.point
    labels = problem.labels.to(point.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4 / problem.loss_scale)
    precision: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if point.dtype != "float32":
        precision = torch.autocast(torch.device(point.device).type, DTYPES[point.dtype])

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with precision:
            loss = F.cross_entropy(call(images), labels)
        (loss * problem.loss_scale).backward()
        optimizer.step()
        return loss

    def check() -> dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        with precision:
            logits = call(images)
        return backward_values(model, logits.float(), labels, problem.loss_scale)

    return Contender(run, check)


def mobilenet_ext_training(problem: Problem) -> Contender:
    """The training step of FusedMobileNet."""
    model = fused(problem)
    return training_step(model, model, problem, problem.inputs(channels_last=True))


def trained(*, channels_last: bool) -> Builder:
    """Return the builder of the training step of stock PyTorch."""

    def build(problem: Problem) -> Contender:
        model = problem.build(MobileNet, channels_last=channels_last)
        return training_step(model, model, problem, problem.inputs(channels_last=channels_last))

    return build


INFERENCE: dict[str, Builder] = {
    OURS: mobilenet_ext,
    OURS + ".freeze": mobilenet_ext_freeze,
    "eager": eager,
    "eager_channels_last": eager_channels_last,
    "bn_folded": bn_folded,
    "compile": compiled(None),
    "compile_max_autotune": compiled("max-autotune"),
}
TRAINING: dict[str, Builder] = {
    OURS: mobilenet_ext_training,
    "eager": trained(channels_last=False),
    "eager_channels_last": trained(channels_last=True),
    "compile": compiled(None),
    "compile_max_autotune": compiled("max-autotune"),
}
ON_REQUEST = {"compile_max_autotune"}  # minutes to build: only when named in --peers


def is_ours(name: str) -> bool:
    """Return whether `name` is one of our contenders rather than a peer."""
    return name == OURS or name.startswith(OURS + ".")
