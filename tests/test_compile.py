"""torch.compile without graph breaks, torch.export, and dynamic shapes."""

import copy
from typing import Any

import pytest
import torch
from cases import case_named, make_tensor, make_weight
from models import images, make_pair, named_gradients
from test_block import call_block, make_pointwise_weight
from test_functional import detached_copy, make_batch_norm
from torch import Tensor, nn

from mobilenet_ext import functional


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests() -> None:
    torch.compiler.reset()


def compiled(function: Any, **options: Any) -> Any:
    """aot_eager traces forward and backward as inductor does, and skips the code generation."""
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_block(training: bool) -> None:
    """Values, gradients and running statistics of the compiled block."""
    case = case_named("stride_2_keras_odd_map")
    norms = [make_batch_norm(case.channels, training=training) for _ in range(4)]
    bn, input_bn, other_bn, other_input_bn = norms[0], norms[1], *map(detached_copy, norms[:2])
    pointwise = make_pointwise_weight(case.channels)
    leaves = [make_tensor(case.shape), make_weight(case), pointwise, bn.weight, input_bn.bias]
    for leaf in leaves:
        leaf.requires_grad_()
    x, weight = leaves[:2]
    expected = call_block(x, input_bn, weight, bn, pointwise, case).tensor
    actual = compiled(call_block)(x, other_input_bn, weight, other_bn, pointwise, case).tensor
    torch.testing.assert_close(actual, expected)
    grad = torch.randn(expected.shape)
    torch.testing.assert_close(
        torch.autograd.grad(actual, leaves, grad), torch.autograd.grad(expected, leaves, grad)
    )
    torch.testing.assert_close(other_bn.running_var, bn.running_var)
    torch.testing.assert_close(other_input_bn.running_mean, input_bn.running_mean)


def test_training_step_of_the_network() -> None:
    _, fused = make_pair(torch.float64)
    other = copy.deepcopy(fused)
    x = images(4, 3, 64, 64, dtype=torch.float64)
    for model in (fused, compiled(other)):
        model(x).square().sum().backward()
    gradients = named_gradients(fused)
    assert len(gradients) == len(list(fused.parameters()))
    torch.testing.assert_close(named_gradients(other), gradients, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(dict(other.named_buffers()), dict(fused.named_buffers()))


@torch.no_grad()
def test_evaluation_of_the_network() -> None:
    """Weights changed after compiling are seen: nothing is baked in."""
    _, fused = (model.eval() for model in make_pair(torch.float64))
    x = images(2, 3, 64, 64, dtype=torch.float64)
    run = compiled(fused)
    before = fused(x)
    torch.testing.assert_close(run(x), before, rtol=1e-9, atol=1e-9)
    fused.stem.bn.bias.add_(1)
    fused.blocks[3].depthwise.bn.running_mean.add_(1)
    assert not torch.allclose(fused(x), before)
    torch.testing.assert_close(run(x), fused(x), rtol=1e-9, atol=1e-9)


def test_dynamic_batch_and_size() -> None:
    """One graph for all batch sizes and map sizes."""
    bn = make_batch_norm(9, training=False)
    weight = torch.randn(9, 1, 3, 3)

    def unit(x: Tensor) -> Tensor:
        return functional.depthwise_conv_bn_relu(x, weight, *bn[:4], stride=2, padding=(0, 1, 0, 1))

    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    run = torch.compile(unit, fullgraph=True, dynamic=True, backend=count)
    for shape in ((2, 9, 8, 10), (3, 9, 7, 12), (5, 9, 33, 21)):
        x = make_tensor(shape)
        torch.testing.assert_close(run(x), unit(x))
    assert graphs == 1


@pytest.mark.slow
def test_inductor() -> None:
    """The default backend, on a block: our ops are called as they are, the rest is generated."""
    from mobilenet_ext.nn import SeparableBlock

    block = SeparableBlock(8, 12, stride=2)
    other = copy.deepcopy(block)
    x = images(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    expected, actual = block(x), torch.compile(other, fullgraph=True)(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for output in (expected, actual):
        output.square().sum().backward()
    torch.testing.assert_close(named_gradients(other), named_gradients(block), rtol=1e-3, atol=1e-3)


def test_export() -> None:
    """The exported program has the network's results, also for another batch size."""
    fused = make_pair()[1].eval()
    x = images(2, 3, 64, 64)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(fused, (x,), dynamic_shapes=({0: batch},))
    module = program.module()
    assert isinstance(module, nn.Module)
    with torch.no_grad():
        for size in (2, 3):
            x = images(size, 3, 64, 64)
            torch.testing.assert_close(module(x), fused(x), rtol=1e-4, atol=1e-4)


def test_export_needs_no_custom_ops() -> None:
    """What leaves the process must run where this package is not installed."""
    fused = make_pair()[1].eval()
    program = torch.export.export(fused, (images(1, 3, 64, 64),))
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("mobilenet_ext" in target for target in targets)
