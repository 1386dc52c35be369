"""Preprocessing against torchvision's functions, and its checks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mobilenet_ext import FusedMobileNet, Preprocessing


def photo(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def test_normalize_is_x_over_127_5_minus_1() -> None:
    pixels = photo(5, 6)[None]
    expected = pixels.double() / 127.5 - 1
    preprocessing = Preprocessing(32)
    torch.testing.assert_close(
        preprocessing.normalize(pixels).double(), expected, rtol=0, atol=1e-6
    )
    floats = preprocessing.normalize(pixels / 255).double()
    torch.testing.assert_close(floats, expected, rtol=0, atol=1e-6)


def test_normalize_by_channel() -> None:
    preprocessing = Preprocessing(32, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    got = preprocessing.normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    torch.testing.assert_close(got, torch.tensor([0.9, 0.4, 0.175]))


def test_transform_resizes_crops_and_scales() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    model = FusedMobileNet(10, 0.25)
    model.preprocessing = Preprocessing(224, 256)
    pixels = photo(300, 400)
    resized = functional.resize(pixels, [256], antialias=True)
    assert resized.shape[1:] == (256, 341)
    expected = resized[:, 16:240, 58:282].float() / 127.5 - 1
    actual = model.transforms()(pixels)
    assert type(actual) is Tensor
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert model.freeze().transforms(192)(pixels).shape == (3, 192, 192)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_transform_takes_any_image(mode: str) -> None:
    pytest.importorskip("torchvision")
    image_module = pytest.importorskip("PIL.Image")
    image = image_module.new("RGB", (20, 30), (255, 255, 255)).convert(mode)
    actual = Preprocessing(16).transform()(image)
    torch.testing.assert_close(actual, torch.ones(3, 16, 16))


def test_unknown_preprocessing_is_an_error() -> None:
    with pytest.raises(ValueError, match="preprocessing must be known"):
        FusedMobileNet(10, 0.25).transforms()


def test_without_torchvision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision.transforms", None)
    with pytest.raises(ImportError, match=r"pip install 'mobilenet_ext\[weights\]'"):
        Preprocessing(32).transform()


@pytest.mark.parametrize(
    "fields",
    [
        {"resolution": 0},
        {"resolution": 10**9},
        {"resolution": 32.0},
        {"resize": 0},
        {"interpolation": "lanczos"},
        {"mean": (float("nan"), 0, 0)},
        {"std": (1, 1, 0)},
        {"std": (1, 1)},
    ],
)
def test_fields_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Preprocessing: {next(iter(fields))} must be"):
        Preprocessing(**({"resolution": 32} | fields))
