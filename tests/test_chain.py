"""A run of blocks as one op: against the float64 oracle, block by block, and by differences."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import oracle
import pytest
import torch
from cases import ConvCase, case_named, make_tensor, make_vector, make_weight
from oracle import assert_values
from samples import blocks_arguments, blocks_backward_arguments
from test_functional import check_gradients, detached_copy, expected_running, make_batch_norm
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mobilenet_ext import chain
from mobilenet_ext.batch_norm import BatchNorm
from mobilenet_ext.chain import Link, make_run, run_chain
from mobilenet_ext.geometry import Conv
from mobilenet_ext.pointwise import RawMap

KERAS = (0, 1, 0, 1)


@dataclass(frozen=True)
class Network:
    """Blocks of 9, 17 and 8 channels on a map of 9 x 7, of which one halves it as Keras does."""

    cases: tuple[ConvCase, ...]
    weights: tuple[tuple[Tensor, Tensor], ...]
    norms: tuple[tuple[BatchNorm, BatchNorm], ...]

    @property
    def tensors(self) -> list[Tensor]:
        """All that gradients may be wanted of, the input apart, ten a block less the buffers."""
        result: list[Tensor] = []
        for weights, norms in zip(self.weights, self.norms, strict=True):
            result += (*weights, *(x for bn in norms for x in (bn.weight, bn.bias)))
        return result

    def links(self) -> list[Link]:
        return [
            Link(*weights, Conv(*case.geometry), *map(detached_copy, norms))
            for case, weights, norms in zip(self.cases, self.weights, self.norms, strict=True)
        ]

    def exact(self, x: Tensor) -> Tensor:
        for case, weights, norms in zip(self.cases, self.weights, self.norms, strict=True):
            x = oracle.block(x, norms[0], weights[0], norms[1], weights[1], case)
        return x


def make_network(
    modes: Sequence[bool], dtype: torch.dtype = torch.float32, activation: str | None = "relu6"
) -> Network:
    """`modes`: for each BatchNorm in order whether it trains."""
    channels = (9, 17, 8, 5)[: len(modes) // 2 + 1]
    first = ConvCase("", 3, 9, 9, 7, activation=activation)
    cases, weights, norms = [], [], []
    for i, (before, after) in enumerate(pairwise(channels)):
        case = replace(first, channels=before, **({"stride": 2, "padding": KERAS} if i else {}))
        cases.append(case)
        pointwise = torch.randn(after, before, 1, 1, dtype=torch.float64) / before
        pointwise += torch.eye(after, before)[:, :, None, None]
        weights.append((make_weight(case, dtype), pointwise.to(dtype)))
        pair = modes[2 * i : 2 * i + 2]
        norms.append(
            tuple(make_batch_norm(before, dtype, training=x, activation=activation) for x in pair)
        )
    return Network(tuple(cases), tuple(weights), tuple(norms))


MODES = {
    "training": (True,) * 6,
    "frozen": (False,) * 6,
    "first_frozen": (False, False, True, True, True, True),
    "mixed": (True, False, False, True, False, True),
}
over_modes = pytest.mark.parametrize("modes", MODES.values(), ids=MODES)
over_ways = pytest.mark.parametrize("way", ["one_op", "split", "one_by_one"])


def choose(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "split":
        monkeypatch.setattr(chain, "SPLIT_FROM", 0)
    elif way == "one_by_one":
        monkeypatch.setattr(chain, "is_one_op", lambda *_: False)


def test_a_run_of_large_maps_is_split_where_they_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(make_network((True,) * 6).links(), statistics=False)
    x = make_tensor((3, 9, 9, 7))
    assert chain._parts(RawMap(x), run) == [run]
    choose("split", monkeypatch)
    parts = chain._parts(RawMap(x), run)
    assert [link for part in parts for link in part.links] == list(run.links)
    assert [[link.conv.stride for link in part.links] for part in parts] == [[1], [2], [2]]
    assert [part.plan.statistics for part in parts] == [True, True, False]


@over_ways
@over_modes
def test_values_and_gradients(
    modes: tuple[bool, ...], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(way, monkeypatch)
    network = make_network(modes)
    x = make_tensor((3, 9, 9, 7))
    check_gradients(
        lambda: run_chain(RawMap(x), make_run(network.links(), statistics=False))[0].tensor,
        lambda: network.exact(x),
        [x, *network.tensors],
        "channels_last",
    )


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@over_ways
def test_moments_of_every_batch_norm(grad: bool, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(way, monkeypatch)
    network = make_network(MODES["mixed"])
    x = make_tensor((3, 9, 9, 7)).requires_grad_(grad)
    output, moments = run_chain(RawMap(x), make_run(network.links(), statistics=True))
    raw = x.detach().double()
    pairs = zip(network.cases, network.weights, network.norms, moments, strict=True)
    for case, weights, norms, found in pairs:
        z = oracle.batch_norm_act(raw, norms[0])
        depthwise = oracle.convolution(z, weights[0], case)
        both = zip((raw, depthwise), norms, (found.input_bn, found.bn), strict=True)
        for map, bn, statistics in both:
            if not bn.training:
                assert statistics == (None, None)
                continue
            every = bn._replace(momentum=1.0)
            mean, var = expected_running(every, map.detach())
            assert_values(statistics.mean, mean, torch.float32, scale=50.0)
            assert_values(statistics.unbiased_var, var, torch.float32, scale=2500.0)
        raw = oracle.block(raw, norms[0], weights[0], norms[1], weights[1], case).detach()
    assert output.statistics is not None
    assert_values(output.mean, raw.mean((0, 2, 3)), torch.float32, scale=50.0)


@pytest.mark.parametrize("needed", [0, 1, 5, 6, 8, 11, 17])
@over_modes
def test_part_of_the_gradients(modes: tuple[bool, ...], needed: int) -> None:
    """The backward ends at the first block that needs one; what is left out changes nothing."""
    network = make_network(modes)
    x, inputs = make_tensor((3, 9, 9, 7)), network.tensors

    def output() -> Tensor:
        return run_chain(RawMap(x), make_run(network.links(), statistics=False))[0].tensor

    for tensor in inputs:
        tensor.requires_grad_()
    every = output()
    grad = torch.randn_like(every)
    expected = torch.autograd.grad(every, inputs[needed], grad)
    for i, tensor in enumerate(inputs):
        tensor.requires_grad_(i == needed)
    actual = torch.autograd.grad(output(), inputs[needed], grad)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["one_op", "split"])
@pytest.mark.parametrize("modes", [(True,) * 4, (True, False, False, True)], ids=str)
def test_by_differences(modes: tuple[bool, ...], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """First and second derivatives."""
    choose(way, monkeypatch)
    network = make_network(modes, torch.float64, activation=None)
    small = [replace(case, batch=2, height=3, width=3) for case in network.cases]
    network = replace(network, cases=tuple(small))
    x = make_vector(2 * 9 * 3 * 3, -1, 1, torch.float64).view(2, 9, 3, 3)
    tensors = [t.detach().requires_grad_() for t in (x, *network.tensors[:2], network.tensors[3])]

    def call(x: Tensor, depthwise: Tensor, pointwise: Tensor, bias: Tensor) -> Tensor:
        first, *rest = network.links()
        input_bn = first.input_bn._replace(bias=bias)
        first = first._replace(
            depthwise_weight=depthwise, pointwise_weight=pointwise, input_bn=input_bn
        )
        return run_chain(RawMap(x), make_run([first, *rest], statistics=False))[0].tensor

    assert gradcheck(call, tensors, fast_mode=True)
    assert gradgradcheck(call, tensors, fast_mode=True)


def test_statistics_of_the_input_are_taken_where_known() -> None:
    network = make_network(MODES["training"])
    x = make_tensor((3, 9, 9, 7))
    counted, _ = run_chain(RawMap(x), make_run(network.links(), statistics=False))
    mean, var = torch.ops.mobilenet_ext.batch_norm_statistics(x)
    given, moments = run_chain(RawMap(x, mean, var), make_run(network.links(), statistics=False))
    torch.testing.assert_close(given.tensor, counted.tensor, rtol=0, atol=0)
    assert moments[0].input_bn.mean is not None
    torch.testing.assert_close(moments[0].input_bn.mean, mean, rtol=0, atol=0)


def test_one_value_per_channel_is_an_error() -> None:
    """As in torch, whatever the way."""
    network = make_network(MODES["training"])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run_chain(RawMap(torch.randn(1, 9, 1, 1)), make_run(network.links(), statistics=False))


def test_a_changed_weight_is_noticed() -> None:
    network = make_network(MODES["training"])
    weight = network.weights[1][1].requires_grad_()
    output, _ = run_chain(
        RawMap(make_tensor((3, 9, 9, 7))), make_run(network.links(), statistics=False)
    )
    with torch.no_grad():
        weight.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.tensor.sum().backward()


def test_a_changed_mean_of_the_input_is_noticed() -> None:
    network = make_network(MODES["training"])
    network.weights[1][1].requires_grad_()
    x = make_tensor((3, 9, 9, 7))
    mean, var = torch.ops.mobilenet_ext.batch_norm_statistics(x)
    output, _ = run_chain(RawMap(x, mean, var), make_run(network.links(), statistics=False))
    mean.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.tensor.sum().backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": []}, "tensors must have 10 entries a block, got 0"),
        ({"tensors": [None] * 21}, "tensors must have 10 entries a block, got 21"),
        ({"eps": [1e-3]}, "eps must have 4 entries, got 1"),
        ({"options": [1] * 8}, "options must have 16 entries, got 8"),
        ({"mean": None}, "mean must be a tensor, got None"),
        ({"var": None}, "var must be a tensor, got None"),
        ({"tensors": [None] * 20}, "depthwise_weight must be a tensor, got None"),
        ({"input": torch.zeros(9, 5, 6)}, r"input must be \[N, C, H, W\], got \[9, 5, 6\]"),
        (
            {"input": torch.zeros(1, 9, 1, 1)},
            r"maps must have at least 2 values per channel, got \[1, 9, 1, 1\]",
        ),
    ],
    ids=str,
)
def test_bad_arguments_of_the_op(changes: dict[str, object], message: str) -> None:
    arguments = blocks_arguments(case_named("channels_9")) | changes
    with pytest.raises(RuntimeError, match=f"separable_convs: {message}"):
        torch.ops.mobilenet_ext.separable_convs(**arguments)


def test_running_mean_without_variance_is_an_error() -> None:
    arguments = blocks_arguments(case_named("channels_9"))
    arguments["tensors"][4] = torch.zeros(9)
    message = "running mean and variance must be given together, got only the first"
    with pytest.raises(RuntimeError, match=f"separable_convs: {message}"):
        torch.ops.mobilenet_ext.separable_convs(**arguments)
    arguments["tensors"][1], arguments["tensors"][4] = None, None
    with pytest.raises(RuntimeError, match="pointwise_weight must be a tensor, got None"):
        torch.ops.mobilenet_ext.separable_convs(**arguments)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("maps", [], "maps must have 2 entries a block, got 0"),
        ("weights", [], "weights must have 4 entries, got 0"),
        ("vectors", [], "vectors must have 16 entries, got 0"),
        ("options", [1], "options must have 16 entries, got 1"),
        ("flags", [1], "flags must have 12 entries, got 1"),
        ("maps", [torch.zeros(9)] * 4, r"maps must be \[N, C, H, W\], got \[9\]"),
        ("image", torch.zeros(2, 3, 9, 11), "image and stem must be given together"),
        ("stem", torch.zeros(9, 3, 3, 3), "image and stem must be given together"),
    ],
    ids=str,
)
def test_bad_arguments_of_the_backward(name: str, value: object, message: str) -> None:
    arguments = blocks_backward_arguments(case_named("channels_9")) | {name: value}
    with pytest.raises(RuntimeError, match=f"separable_convs_backward: {message}"):
        torch.ops.mobilenet_ext.separable_convs_backward(**arguments)
