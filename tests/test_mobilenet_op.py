"""The op that runs a whole folded network, against the stock network in float64."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from models import images, make_pair
from test_isa_and_threads import bits
from torch import Tensor
from torch.library import opcheck

from mobilenet_ext import _C, MobileNet, packing, reference_ops
from mobilenet_ext.inference import FrozenMobileNet

mobilenet = torch.ops.mobilenet_ext.mobilenet


@dataclass(frozen=True)
class Case:
    """A network and its input; `layout` is that of the image."""

    name: str
    batch: int
    height: int
    width: int
    alpha: float = 0.25
    padding: str = "keras"
    activation: str = "relu6"
    layout: str = "channels_last"
    num_classes: int = 7
    in_channels: int = 3


CASES = (
    Case("smallest", 1, 32, 32),
    Case("odd_size", 2, 45, 39),
    Case("odd_size_same", 2, 45, 39, padding="same"),
    Case("odd_size_torch", 2, 45, 39, padding="torch", activation="relu"),
    Case("even_size_torch", 1, 64, 96, padding="torch"),
    Case("contiguous", 3, 33, 64, layout="contiguous"),
    Case("sliced", 2, 40, 41, layout="sliced"),
    Case("expanded", 4, 32, 32, layout="expanded"),
    Case("grey", 2, 50, 32, in_channels=1),
    Case("five_channels", 2, 32, 50, in_channels=5, layout="contiguous"),
    # Channels that are no multiple of a panel, of a vector, and fewer than either.
    Case("alpha_0.35", 2, 64, 64, alpha=0.35),
    Case("alpha_0.04", 2, 64, 64, alpha=0.04),
    Case("alpha_0.6", 1, 96, 96, alpha=0.6, num_classes=1001),
    # Wide enough for maps whose pixels are padded apart, and for shared products.
    Case("alpha_1", 1, 64, 64, alpha=1.0, num_classes=33),
    Case("tiles", 1, 160, 160, alpha=0.5),
    # Groups of images: each thread its own, and groups that threads share.
    Case("batch_17", 17, 32, 32),
    Case("batch_3", 3, 128, 128),
    # Images that are not even among two or three threads, which share the rest.
    Case("batch_4", 4, 96, 96, alpha=0.5, layout="contiguous"),
    Case("batch_5", 5, 96, 112, alpha=0.4, layout="sliced"),
    Case("batch_0", 0, 32, 32),
    Case("pooled", 2, 64, 64, num_classes=0),
)
over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def make_images(case: Case) -> Tensor:
    """The same images every time, between NaNs where the layout leaves room."""
    torch.manual_seed(0)
    shape = case.batch, case.in_channels, case.height, case.width
    x = images(*shape)
    if case.layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if case.layout == "expanded":
        return x[:1].expand(shape)
    if case.layout == "sliced":
        n, c, h, w = shape
        wide = torch.full((n, c + 1, h + 3, 2 * w + 1), torch.nan)
        return wide[:, 1:, 2:-1, 1::2].copy_(x)
    return x


def make(case: Case) -> tuple[MobileNet, FrozenMobileNet, Tensor]:
    """The stock network in float64, the frozen one, and images."""
    config = {name: getattr(case, name) for name in ("alpha", "padding", "activation")}
    more = {name: getattr(case, name) for name in ("num_classes", "in_channels")}
    stock, fused = make_pair(**config, **more)
    return stock.eval().double(), fused.eval().freeze(), make_images(case)


def arguments_of(case: Case) -> dict[str, Any]:
    """Keyword arguments of the op."""
    _, frozen, x = make(case)
    packed = frozen._packed
    assert packed is not None
    names = [argument.name for argument in mobilenet.default._schema.arguments]
    return dict(zip(names, (x, *packed.arguments), strict=True))


def assert_logits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    if expected.numel():
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert error <= 1e-4, f"relative error {error:.2e}"


@over_cases
@pytest.mark.parametrize("count", [1, 2, 3])
def test_agrees_with_the_stock_network(threads: None, case: Case, count: int) -> None:
    torch.set_num_threads(count)
    stock, frozen, x = make(case)
    with torch.inference_mode():
        assert frozen._packed is not None
        logits = frozen._packed.run(x)
        assert_logits(logits, stock(x.double()))
        assert bits(frozen(x)) == bits(logits)


@over_cases
def test_reference_agrees_with_the_stock_network(case: Case) -> None:
    if case.batch == 0:
        pytest.skip("torch has no convolution of an empty batch in double")
    stock, _, x = make(case)
    arguments = arguments_of(case)
    with torch.no_grad():
        assert_logits(reference_ops.mobilenet(**arguments), stock(x.double()))


@over_cases
def test_every_isa_and_any_number_of_threads(threads: None, isas: list[str], case: Case) -> None:
    stock, _, x = make(case)
    arguments = arguments_of(case)
    with torch.inference_mode():
        expected = stock(x.double())
    for isa in isas:
        _C.set_isa(isa)
        torch.set_num_threads(1)
        alone = mobilenet(**arguments)
        assert_logits(alone, expected)
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            assert bits(mobilenet(**arguments)) == bits(alone), f"{isa}, {count} threads"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [20, 300])
def test_any_padding_and_width(threads: None, stride: int, channels: int) -> None:
    """Of a block by itself: which outputs reach over which edge; wide pixels go in parts."""
    torch.manual_seed(0)
    stem, depthwise = torch.randn(channels, 3, 3, 3), torch.randn(channels, 1, 3, 3)
    matrix, bias = torch.randn(24, channels) / channels**0.5, torch.randn(channels)
    parts = [packing.pack_stem(stem, bias), packing.pack_depthwise(depthwise, bias)]
    weight = torch.cat([*parts, packing.pack_matrix(matrix, torch.randn(24))])
    for width in (*range(1, 10), 13):
        for left, right in product(range(3), range(3)):
            if width + left + right < 3:
                continue
            layers = [
                [3, channels, 1, 1, 1, 1, 1],
                [channels, 24, stride, left, right, right, left],
            ]
            x = torch.randn(2, 3, width, width)
            arguments = (x, weight, torch.tensor(layers), 24, False, 2)
            expected = reference_ops.mobilenet(*arguments)
            for count in (1, 3):
                torch.set_num_threads(count)
                actual = mobilenet(*arguments)
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_nan_reaches_the_logits_of_its_image_only() -> None:
    arguments = arguments_of(Case("", 3, 32, 32))
    expected = mobilenet(**arguments)
    arguments["input"] = arguments["input"].clone()
    arguments["input"][1, 2, 7, 9] = torch.nan
    logits = mobilenet(**arguments)
    assert logits[1].isnan().all()
    assert torch.equal(logits[::2], expected[::2])


def test_fake_kernel_and_schema() -> None:
    opcheck(mobilenet, (), arguments_of(Case("", 2, 32, 40)))
    opcheck(mobilenet, (), arguments_of(Case("", 2, 32, 40, num_classes=0)))


def test_packing_can_be_undone() -> None:
    matrix, bias, kernel = torch.randn(21, 5), torch.randn(21), torch.randn(19, 1, 3, 3)
    packed = torch.cat(
        [packing.pack_matrix(matrix, bias), packing.pack_depthwise(kernel, bias[:19])]
    )
    first, first_bias, rest = packing.unpack_matrix(packed, 21, 5)
    second, second_bias, rest = packing.unpack_depthwise(rest, 19)
    assert torch.equal(first, matrix)
    assert torch.equal(first_bias, bias)
    assert torch.equal(second, kernel)
    assert torch.equal(second_bias, bias[:19])
    assert rest.numel() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.zeros(3, 32, 32)}, "input must be [N, C, H, W], got [3, 32, 32]"),
        ({"input": torch.zeros(1, 3, 32, 32).double()}, "input must be float32, got float64"),
        ({"input": torch.zeros(1, 4, 32, 32)}, "layers[0] must have the channels of its input"),
        ({"weight": torch.zeros(5)}, "weight must be contiguous [214752], got [5]"),
        ({"weight": torch.zeros(5).double()}, "weight must be float32 like the input"),
        ({"layers": torch.zeros(0, 7).long()}, "layers must be [L, 7] with L from 1 to 33"),
        ({"layers": torch.zeros(14, 6).long()}, "layers must be [L, 7] with L from 1 to 33"),
        ({"layers": torch.zeros(14, 7)}, "layers must be a contiguous int64 tensor on cpu"),
        ({"outputs": 0}, "outputs must be at least 1, got 0"),
        ({"outputs": 9, "has_classifier": False}, "outputs must be the last layer's 256"),
        ({"activation": 3}, "activation must be 0 (none), 1 (relu) or 2 (relu6), got 3"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    arguments = arguments_of(Case("", 1, 32, 32)) | changes
    with pytest.raises(RuntimeError) as error:
        mobilenet(**arguments)
    assert f"mobilenet: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 9, "layers[2] must have the channels of its input, got 9"),
        (1, 0, "layers[2] must have 1 or more channels, got 0"),
        (2, 3, "layers[2] must have stride 1 or 2, got 3"),
        (3, -1, "layers[2] must have paddings from 0 to 2, or four times -1, got 1"),
        (4, -1, "layers[2] must have paddings from 0 to 2, or four times -1, got -1"),
        (6, 3, "layers[2] must have paddings from 0 to 2, or four times -1, got 3"),
    ],
)
def test_errors_in_a_layer(column: int, value: int, message: str) -> None:
    arguments = arguments_of(Case("", 1, 32, 32))
    arguments["layers"][2, column] = value
    with pytest.raises(RuntimeError) as error:
        mobilenet(**arguments)
    assert f"mobilenet: {message}" in str(error.value)


def test_wrong_number_of_channels_is_the_networks_error() -> None:
    frozen = make_pair()[1].freeze()
    with pytest.raises(ValueError, match=r"FrozenMobileNet: input must be .* with C = 3"):
        frozen(torch.zeros(1, 4, 32, 32))


def test_a_compiled_network_has_the_same_error_and_results() -> None:
    frozen, x = make_pair()[1].freeze(), images(2, 3, 32, 40)
    compiled = torch.compile(frozen, backend="eager")
    with pytest.raises(ValueError, match=r"FrozenMobileNet: input must be .* with C = 3"):
        compiled(torch.zeros(1, 4, 32, 32))
    torch.testing.assert_close(compiled(x), frozen(x), rtol=0, atol=0)


def test_gradients_are_not_recorded() -> None:
    frozen = make_pair()[1].freeze()
    assert not frozen(torch.zeros(1, 3, 32, 32, requires_grad=True)).requires_grad


def test_what_the_op_does_not_take_goes_layer_by_layer() -> None:
    _, fused = make_pair()
    assert fused.freeze()._packed is not None
    assert fused.freeze().double()._packed is None
    assert fused.freeze().bfloat16().float()._packed is not None
    for config in ({"output_stride": 8}, {"features_only": True}, {"depth_multiplier": 2}):
        assert make_pair(**config)[1].freeze()._packed is None
