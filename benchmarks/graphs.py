"""Contenders that replay a CUDA graph: one launch for a whole forward pass or training step.

Entered only where --peers names them. A graph is verified by replaying it, from the problem's own
weights, not by the calls that it was made of.
"""

from collections.abc import Callable

import torch
from contenders import (
    INFERENCE,
    ON_REQUEST,
    OURS,
    TRAINING,
    Builder,
    Contender,
    NotAvailable,
    eager_channels_last,
    forward_of,
    fused,
    mode_of,
    training_step,
)
from problem import Problem, recorded_values
from torch import Tensor

from mobilenet_ext import MobileNet

WARM_UPS = 3


def capture(run: Callable[[], object]) -> tuple[Callable[[], None], Tensor]:
    """Return what replays `run`, and the tensor that it writes its result to.

    The graph reads the images and labels where they were, so the replay keeps `run`, which has
    them.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    assert isinstance(result, Tensor)

    def replay(run: Callable[[], object] = run) -> None:
        graph.replay()

    return replay, result


def needs_gpu(problem: Problem) -> None:
    """Raise `NotAvailable` on a CPU."""
    if not problem.point.device.startswith("cuda"):
        raise NotAvailable("CUDA graphs need a GPU")


def forward_graph(builder: Builder) -> Builder:
    """Return the builder of another contender's forward pass in a graph."""

    def build(problem: Problem) -> Contender:
        needs_gpu(problem)
        contender = builder(problem)
        with mode_of(problem.point):
            replay, logits = capture(contender.run)

        def check() -> dict[str, Tensor]:
            with torch.inference_mode():
                logits.zero_()
                replay()
                return {"logits": logits[problem.rows]}

        return Contender(replay, check)

    return build


def frozen_graph(problem: Problem) -> Contender:
    """`FusedMobileNet.freeze(cuda_graph=True)`."""
    needs_gpu(problem)
    frozen = fused(problem).freeze(cuda_graph=True)  # type: ignore[call-arg, unused-ignore]
    return forward_of(frozen, problem, problem.inputs(channels_last=True))


def stock_model(problem: Problem) -> MobileNet:
    """Return stock PyTorch's, channels_last."""
    return problem.build(MobileNet, channels_last=True)


def step_graph(model_of: Callable[[Problem], MobileNet]) -> Builder:
    """Return the builder of the whole training step of a model in a graph."""

    def build(problem: Problem) -> Contender:
        needs_gpu(problem)
        model = model_of(problem)
        images = problem.inputs(channels_last=True)
        replay, loss = capture(training_step(model, model, problem, images).run)

        def check() -> dict[str, Tensor]:
            model.load_state_dict(problem.state)  # the warm-ups have trained it
            replay()
            return recorded_values(model, loss, problem.loss_scale)

        return Contender(replay, check)

    return build


INFERENCE |= {OURS + ".graph": frozen_graph, "eager_graph": forward_graph(eager_channels_last)}
TRAINING |= {
    OURS + ".graph": step_graph(fused),
    "eager_graph": step_graph(stock_model),
}
ON_REQUEST |= {OURS + ".graph", "eager_graph"}
