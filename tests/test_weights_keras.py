"""Keras's weights against Keras itself, on random weights and random BatchNorm statistics."""

import os
import pathlib
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from models import randomise
from torch import Tensor, nn

from mobilenet_ext import MobileNet, Preprocessing, WeightsError, load_pretrained

h5py = pytest.importorskip("h5py")

from keras_files import write_legacy  # noqa: E402  (needs h5py)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ALPHAS = {"1_0": 1.0, "7_5": 0.75, "5_0": 0.5, "2_5": 0.25}
RESOLUTIONS = (224, 192, 160, 128)


@cache
def keras() -> Any:
    """Import the library: late, as it takes long, and with torch as its backend."""
    os.environ["KERAS_BACKEND"] = "torch"
    return pytest.importorskip("keras")


@cache
def hostile_network(alpha: float) -> MobileNet:
    torch.manual_seed(0)
    network = MobileNet(1000, alpha)
    randomise(network)
    return network


@cache
def keras_model(alpha: float, resolution: int, **options: Any) -> Any:
    """Keras's network with hostile weights. Which goes where matters not."""
    arguments = {"weights": None, "classifier_activation": None} | options
    model = keras().applications.MobileNet((resolution, resolution, 3), alpha, **arguments)
    ours = hostile_network(alpha)
    modules = list(ours.modules())
    convolutions = (m.weight.detach() for m in modules if isinstance(m, nn.Conv2d))
    norms = (m for m in modules if isinstance(m, nn.BatchNorm2d))
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "BatchNormalization":
            bn = next(norms)
            fields = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
            layer.set_weights([field.detach().numpy() for field in fields])
        elif kind == "DepthwiseConv2D":
            layer.set_weights([next(convolutions).permute(2, 3, 0, 1).numpy()])
        elif kind == "Conv2D" and layer.name != "conv_preds":
            layer.set_weights([next(convolutions).permute(2, 3, 1, 0).numpy()])
        elif layer.weights:
            weight, bias = (p.detach() for p in ours.classifier.parameters())
            classes = layer.weights[0].shape[-1]
            kernel = weight[:classes].t().reshape(layer.weights[0].shape)
            layer.set_weights([kernel.numpy(), bias[:classes].numpy()])
    return model


def assert_same(path: pathlib.Path, model: Any, resolution: int, **overrides: Any) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (1, resolution, resolution, 3)).astype("float32")
    loaded = load_pretrained(path, **overrides).eval()
    with torch.no_grad():
        expected = torch.as_tensor(model(x)).float()
        actual = loaded(torch.from_numpy(x).permute(0, 3, 1, 2))
        if expected.dim() == 4:
            actual = loaded.forward_features(torch.from_numpy(x).permute(0, 3, 1, 2))
            assert isinstance(actual, Tensor)
            actual = actual.permute(0, 2, 3, 1)
    assert expected.std() > 0.1 * expected.abs().max() > 0
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ALPHAS)
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_all_published_patterns(tmp_path: pathlib.Path, name: str, resolution: int) -> None:
    model = keras_model(ALPHAS[name], resolution)
    path = write_legacy(model, tmp_path / f"mobilenet_{name}_{resolution}_tf.h5")
    assert_same(path, model, resolution)
    loaded = load_pretrained(path)
    assert (loaded.config["alpha"], loaded.config["num_classes"]) == (ALPHAS[name], 1000)
    assert loaded.preprocessing == Preprocessing(resolution, int(resolution / 0.875))
    names = loaded.class_names
    assert names is None or (len(names), names[0]) == (1000, "tench")


@pytest.mark.parametrize("resolution", [75, 197])
def test_odd_sizes(tmp_path: pathlib.Path, resolution: int) -> None:
    model = keras_model(0.25, resolution)
    assert_same(write_legacy(model, tmp_path / "x.h5"), model, resolution)


@pytest.mark.parametrize(
    "options",
    [
        {"suffix": ""},
        {"text": True},
        {"chunks": 3},
        {"chunks": 3, "text": True, "root": "model_weights"},
    ],
)
def test_legacy_spellings(tmp_path: pathlib.Path, options: dict[str, Any]) -> None:
    model = keras_model(0.25, 64)
    assert_same(write_legacy(model, tmp_path / "x.h5", **options), model, 64)


@pytest.mark.parametrize("name", ["x.weights.h5", "x.h5"])
def test_files_that_keras_3_writes(tmp_path: pathlib.Path, name: str) -> None:
    model = keras_model(0.25, 64, classes=12)
    save = model.save_weights if name.endswith(".weights.h5") else model.save
    save(tmp_path / name)
    assert_same(tmp_path / name, model, 64)


def test_legacy_files_that_keras_3_writes(tmp_path: pathlib.Path) -> None:
    keras()
    saving = pytest.importorskip("keras.src.legacy.saving.legacy_h5_format")
    model = keras_model(0.25, 64)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        saving.save_weights_to_hdf5_group(file, model)
    assert_same(tmp_path / "x.h5", model, 64)


@pytest.mark.parametrize("keras_3", [False, True])
def test_no_top(tmp_path: pathlib.Path, keras_3: bool) -> None:
    """Without a classifier in the file there is none in the network, unless one is asked for."""
    model = keras_model(0.25, 96, include_top=False)
    path = tmp_path / "mobilenet_2_5_128_tf_no_top.weights.h5"
    if keras_3:
        model.save_weights(path)
    else:
        write_legacy(model, path)
    assert_same(path, model, 96)
    loaded = load_pretrained(path)
    assert isinstance(loaded.classifier, nn.Identity)
    assert loaded.config["num_classes"] == 0
    with pytest.warns(UserWarning, match="classifier is new .* 5 classes instead of none"):
        assert_same(path, model, 96, num_classes=5)
    assert len(load_pretrained(path, features_only=True)(torch.zeros(2, 3, 64, 64))) == 5


def test_depth_multiplier_and_channels(tmp_path: pathlib.Path) -> None:
    """Keras's network of any shape, here with weights as Keras draws them."""
    model = keras().applications.MobileNet(
        (64, 64, 5),
        0.35,
        depth_multiplier=2,
        weights=None,
        classes=7,
        classifier_activation=None,
    )
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            shape = layer.weights[0].shape
            layer.set_weights([generator.uniform(low, high, shape) for low, high in _NORM_RANGES])
    x = generator.uniform(-1, 1, (1, 64, 64, 5)).astype("float32")
    loaded = load_pretrained(write_legacy(model, tmp_path / "x.h5")).eval()
    assert (loaded.config["alpha"], loaded.config["depth_multiplier"]) == (0.35, 2)
    with torch.no_grad():
        expected = torch.as_tensor(model(x))
        actual = loaded(torch.from_numpy(x).permute(0, 3, 1, 2))
    assert expected.std() > 0
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


_NORM_RANGES = ((1.0, 2.0), (0.5, 1.5), (-0.1, 0.1), (0.5, 1.0))


def test_a_dense_classifier(tmp_path: pathlib.Path) -> None:
    """Fine-tuned networks often end in one."""
    base = keras_model(0.25, 64, include_top=False, pooling="avg")
    model = keras().Model(base.input, keras().layers.Dense(4)(base.output))
    assert_same(write_legacy(model, tmp_path / "x.h5"), model, 64)


def test_wrong_alpha_and_other_networks(tmp_path: pathlib.Path) -> None:
    path = write_legacy(keras_model(0.25, 64), tmp_path / "x.h5")
    wrong = (
        r"conv1/kernel:0 \(stem.conv.weight\): "
        r"expected \[16, 3, 3, 3\], found \[8, 3, 3, 3\]"
    )
    with pytest.raises(WeightsError, match=wrong):
        load_pretrained(path, alpha=0.5)
    other = keras().Sequential([keras().Input((8, 8, 3)), keras().layers.Conv2D(4, 3)])
    with pytest.raises(WeightsError, match=r"27 BatchNorms .* found 0, 0 and 1"):
        load_pretrained(write_legacy(other, tmp_path / "y.h5"))
