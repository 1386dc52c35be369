"""save_pretrained and load_pretrained in this package's own format, and what goes with weights."""

import copy
import json
import os
import pathlib
import pickle
from typing import Any

import pytest
import torch
from models import images, make_pair
from safetensors import safe_open
from safetensors.torch import save_file

from mobilenet_ext import (
    FusedMobileNet,
    MobileNet,
    Preprocessing,
    WeightsError,
    load_pretrained,
    save_pretrained,
)
from mobilenet_ext.weights.architecture import width_multiplier

NAMES = tuple("abcdefg")
UNUSUAL: dict[str, Any] = {
    "alpha": 0.35,
    "in_channels": 2,
    "depth_multiplier": 2,
    "dropout": 0.2,
    "activation": "relu",
    "padding": "torch",
    "bn_eps": 1e-5,
    "bn_momentum": None,
    "output_stride": 16,
}


@pytest.mark.parametrize("config", [{}, UNUSUAL, {"num_classes": 0}, {"features_only": True}])
def test_round_trip(tmp_path: pathlib.Path, config: dict[str, Any]) -> None:
    stock, _ = make_pair(**config)
    loaded = load_pretrained(save_pretrained(stock, tmp_path / "new" / "x.safetensors"))
    assert type(loaded) is FusedMobileNet
    assert loaded.config == stock.config
    for name, value in stock.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]
    (tmp_path / "usual").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "usual", tmp_path / "new/x.safetensors")}
    assert len(modes) == 1


def test_everything_else_travels_along(tmp_path: pathlib.Path) -> None:
    preprocessing = Preprocessing(48, 64, "bicubic", (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    path = save_pretrained(
        FusedMobileNet(7, 0.25),
        tmp_path / "x.safetensors",
        class_names=NAMES,
        preprocessing=preprocessing,
        metadata={"accuracy": 0.5},
    )
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["metadata"]) == {"accuracy": 0.5}
    model = load_pretrained(path)
    again = load_pretrained(save_pretrained(model, tmp_path / "y.safetensors"))
    frozen = model.freeze()
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), frozen, again]  # noqa: S301
    for each in [model, *copies, copy.deepcopy(frozen)]:
        assert each.class_names == NAMES
        assert each.preprocessing == preprocessing


def test_the_architecture_alone_is_enough(tmp_path: pathlib.Path) -> None:
    stock, _ = (model.eval() for model in make_pair(padding="same"))
    metadata = {"architecture": json.dumps(stock.config)}
    save_file(stock.state_dict(), tmp_path / "x.safetensors", metadata)
    loaded = load_pretrained(tmp_path / "x.safetensors").eval()
    x = images(2, 3, 32, 32)
    assert loaded.config["padding"] == "same"
    torch.testing.assert_close(loaded(x), stock(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "model": state}])
def test_bare_state_dicts(tmp_path: pathlib.Path, wrap: Any) -> None:
    stock, _ = make_pair(alpha=0.35, depth_multiplier=2, in_channels=2)
    torch.save(wrap(stock.state_dict()), tmp_path / "x.pt")
    loaded = load_pretrained(tmp_path / "x.pt", dropout=0.0)
    assert loaded.config == stock.config
    assert torch.equal(loaded.classifier.bias, stock.classifier.bias)


def test_overrides(tmp_path: pathlib.Path) -> None:
    path = save_pretrained(FusedMobileNet(7, 0.25), tmp_path / "x", class_names=NAMES)
    model = load_pretrained(path, dropout=0.5, bn_momentum=None)
    assert (model.dropout.p, model.stem.bn.momentum) == (0.5, None)
    with pytest.warns(UserWarning, match="classifier is new .* 5 classes instead of 7"):
        model = load_pretrained(path, num_classes=5)
    assert model(images(2, 3, 32, 32)).shape == (2, 5)
    assert model.class_names is None
    assert isinstance(load_pretrained(path, num_classes=0).classifier, torch.nn.Identity)
    maps = load_pretrained(path, features_only=True)
    assert len(maps(images(2, 3, 32, 32))) == 5
    path_of_maps = save_pretrained(maps, tmp_path / "maps")
    with pytest.warns(UserWarning, match="classifier is new .* 7 classes instead of none"):
        model = load_pretrained(path_of_maps, features_only=False)
    assert model(images(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"overrides must be among .*'alpha'.*, got 'aplha'"):
        load_pretrained(path, aplha=0.5)
    with pytest.raises(ValueError, match="dropout must be in"):
        load_pretrained(path, dropout=2)


def test_an_override_that_does_not_fit_names_tensors_and_shapes(tmp_path: pathlib.Path) -> None:
    path = save_pretrained(FusedMobileNet(7, 0.25), tmp_path / "x")
    wrong = r"stem.conv.weight: expected \[16, 3, 3, 3\], found \[8, 3, 3, 3\], .* more"
    with pytest.raises(WeightsError, match=wrong):
        load_pretrained(path, alpha=0.5)


def test_half_precision_files_become_float32(tmp_path: pathlib.Path) -> None:
    model = FusedMobileNet(7, 0.25).half()
    loaded = load_pretrained(save_pretrained(model, tmp_path / "x"))
    assert loaded.stem.conv.weight.dtype == torch.float32
    assert torch.equal(loaded.stem.conv.weight.half(), model.stem.conv.weight)


def test_a_replaced_layer_is_not_saved(tmp_path: pathlib.Path) -> None:
    model = MobileNet(7, 0.25)
    model.classifier = torch.nn.Sequential(torch.nn.Linear(256, 7))
    with pytest.raises(ValueError, match=r"must be as built, .* got 'classifier.0.bias"):
        save_pretrained(model, tmp_path / "x")
    with pytest.raises(ValueError, match="class_names must be 7 names, got 2"):
        save_pretrained(MobileNet(7, 0.25), tmp_path / "x", class_names=["a", "b"])
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_pretrained(MobileNet(7, 0.25), tmp_path / "x")
    before = path.read_bytes()
    (tmp_path / "reader").hardlink_to(path)
    save_pretrained(MobileNet(7, 0.25), path)
    assert (tmp_path / "reader").read_bytes() == before != path.read_bytes()  # one still reading
    (tmp_path / "reader").unlink()
    before = path.read_bytes()

    def broken(state: object, place: pathlib.Path, **named: object) -> None:
        place.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(MobileNet(7, 0.25), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "x", []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append(path.exists()))
    save_pretrained(MobileNet(7, 0.25), path)
    assert seen == [False]


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("architecture", "{", "architecture: expected JSON"),
        ("architecture", "[]", "architecture: expected an object"),
        ("architecture", '{"alpha": 1e300}', "no such network"),
        ("architecture", '{"alpha": "wide"}', "no such network"),
        ("architecture", '{"alpha": 0.25, "evil": 1}', "no such network: .*evil"),
        ("architecture", '{"alpha": 64}', r"stem.conv.weight: expected \[2048, 3"),
        ("class_names", '["a"]', "class_names: expected 7 names, found 1"),
        ("class_names", "[1]", "class_names: expected a list of texts"),
        ("preprocessing", '{"resolution": -1}', "preprocessing: .*resolution must be an int"),
        ("preprocessing", '{"size": 1}', "preprocessing: .*size"),
        ("preprocessing", "[]", "preprocessing: expected an object"),
    ],
)
def test_bad_metadata(tmp_path: pathlib.Path, key: str, text: str, message: str) -> None:
    model = MobileNet(7, 0.25)
    texts = {"architecture": json.dumps(model.config)} | {key: text}
    save_file(model.state_dict(), tmp_path / "x", metadata=texts)
    with pytest.raises(WeightsError, match=message):
        load_pretrained(tmp_path / "x")


def test_a_missing_and_an_unexpected_tensor_are_named(tmp_path: pathlib.Path) -> None:
    model = MobileNet(7, 0.25)
    state = model.state_dict()
    state["extra"] = state.pop("classifier.bias")
    texts = {"architecture": json.dumps(model.config)}
    save_file(state, tmp_path / "x", metadata=texts)
    with pytest.raises(WeightsError, match=r"missing: classifier.bias; unexpected: extra"):
        load_pretrained(tmp_path / "x")


def test_width_multiplier_gives_back_all_widths() -> None:
    for channels in [*range(32, 2049), 40_000]:
        alpha = width_multiplier(channels)
        widths = [int((1024 >> shift) * alpha) for shift in range(6)]
        assert widths == [channels >> shift for shift in range(6)], channels


def test_width_multiplier_prefers_short_decimals() -> None:
    assert [width_multiplier(n) for n in (256, 358, 512, 768, 1024, 1280)] == [
        *(0.25, 0.35, 0.5, 0.75, 1.0, 1.25)
    ]


def test_reset_classifier_forgets_the_names() -> None:
    model = FusedMobileNet(7, 0.25)
    model.class_names = NAMES
    model.reset_classifier(7)
    assert model.class_names is None
