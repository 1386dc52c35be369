"""Hugging Face's and timm's checkpoints against transformers and timm, and back again."""

import json
import os
import pathlib
from typing import Any

import pytest
import torch
from models import images, make_pair, randomise
from torch import Tensor, nn

from mobilenet_ext import FusedMobileNet, Preprocessing, WeightsError, load_pretrained
from mobilenet_ext.weights import export_pretrained

os.environ["HF_HUB_OFFLINE"] = "1"
SIZES = (64, 75)


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def timm() -> Any:
    return pytest.importorskip("timm")


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output = model.eval()(x)
    return output if isinstance(output, Tensor) else output.logits


def assert_same(actual: nn.Module, expected: nn.Module) -> None:
    for size in SIZES:
        x = images(2, 3, size, size)
        theirs = logits(expected, x)
        assert theirs.std() > 0.1 * theirs.abs().max() > 0
        assert (logits(actual, x) - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def their_model(transformers: Any, **options: Any) -> nn.Module:
    config = {"num_labels": 1001, "depth_multiplier": 0.25} | options
    model = transformers.MobileNetV1ForImageClassification(transformers.MobileNetV1Config(**config))
    randomise(model)
    return model


@pytest.mark.parametrize("tf_padding", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_hugging_face(
    transformers: Any, tmp_path: pathlib.Path, tf_padding: bool, alone: bool
) -> None:
    model = their_model(transformers, tf_padding=tf_padding, hidden_act="relu6")
    model.save_pretrained(tmp_path)
    path, overrides = tmp_path, {}
    if alone:
        path = (tmp_path / "model.safetensors").rename(tmp_path.parent / f"{tmp_path.name}.x")
        overrides = {"padding": "same" if tf_padding else "torch"}
    loaded = load_pretrained(path, **overrides)
    assert_same(loaded, model)
    assert loaded.stem.bn.momentum == 0.0003
    assert loaded.dropout.p == 0.001


def test_hugging_face_pickled_and_without_background(
    transformers: Any, tmp_path: pathlib.Path
) -> None:
    model = their_model(transformers, depth_multiplier=0.35)
    names = {number: f"class {number}" for number in range(1001)}
    model.config.id2label = names
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_pretrained(tmp_path, drop_background=True)
    x = images(2, 3, 64, 64)
    expected = logits(model, x)[:, 1:]
    assert (logits(loaded, x) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert loaded.class_names == tuple(names[number] for number in range(1, 1001))
    assert load_pretrained(tmp_path).class_names == tuple(names.values())
    loaded = load_pretrained(tmp_path, num_classes=0)
    with pytest.raises(WeightsError, match=r"classifier.weight: expected 1001 classes .* found 7"):
        load_pretrained(export_pretrained(make_pair()[0], tmp_path / "x"), drop_background=True)


def test_hugging_face_processor(transformers: Any, tmp_path: pathlib.Path) -> None:
    """The image processor's own output, on a photo of noise."""
    pytest.importorskip("torchvision")
    pixels = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    processor = transformers.MobileNetV1ImageProcessor()
    their_model(transformers).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.preprocessing == Preprocessing(224, 256)
    expected = processor(pixels, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(loaded.transforms()(pixels), expected, rtol=0, atol=1e-2)


def test_hugging_face_without_a_head(transformers: Any, tmp_path: pathlib.Path) -> None:
    config = transformers.MobileNetV1Config(depth_multiplier=0.25)
    model = transformers.MobileNetV1Model(config)
    randomise(model)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_pretrained(tmp_path / "theirs").eval()
    x = images(2, 3, 64, 64)
    folder = export_pretrained(loaded, tmp_path / "ours", "huggingface")
    back = transformers.MobileNetV1Model.from_pretrained(folder)
    with torch.no_grad():
        expected = model.eval()(x).pooler_output
        assert (loaded(x) - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert torch.equal(back.eval()(x).pooler_output, expected)


@pytest.mark.parametrize("padding", ["same", "torch"])
def test_to_hugging_face_and_back(transformers: Any, tmp_path: pathlib.Path, padding: str) -> None:
    stock, fused = make_pair(padding=padding, alpha=0.35, bn_eps=1e-4, dropout=0.25)
    fused.class_names = tuple("abcdefg")
    fused.preprocessing = Preprocessing(48, 64, "bicubic", (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    folder = export_pretrained(fused, tmp_path / "x", "huggingface")
    theirs, info = transformers.MobileNetV1ForImageClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(theirs, stock)
    assert theirs.config.id2label[6] == "g"
    back = load_pretrained(folder)
    assert back.config == fused.config | {"bn_momentum": 0.0003}
    assert (back.class_names, back.preprocessing) == (fused.class_names, fused.preprocessing)
    assert_state_equal(back, fused)


def assert_state_equal(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    ("name", "suffix"), [("mobilenetv1_100", ".safetensors"), ("mobilenetv1_125", ".pth")]
)
def test_timm(timm: Any, tmp_path: pathlib.Path, name: str, suffix: str) -> None:
    model = timm.create_model(name, num_classes=1000)
    randomise(model)
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    loaded = load_pretrained(path)
    assert_same(loaded, model)
    assert loaded.config["alpha"] == float(name[-3:]) / 100
    assert loaded.stem.bn.eps == 1e-5
    assert loaded.preprocessing == Preprocessing(224, 256, "bicubic")


@pytest.mark.parametrize("padding", ["same", "torch"])
def test_to_timm_and_back(timm: Any, tmp_path: pathlib.Path, padding: str) -> None:
    config: dict[str, Any] = {"alpha": 1.0, "bn_eps": 1e-3, "dropout": 0.25, "bn_momentum": 0.1}
    stock, fused = make_pair(padding=padding, output_stride=16, **config)
    fused.class_names = tuple("abcdefg")
    fused.preprocessing = Preprocessing(192, 256, "bilinear", (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    folder = export_pretrained(fused, tmp_path / "x", "timm")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert_same(theirs, stock)
    assert list(theirs.pretrained_cfg["mean"]) == [0.4, 0.5, 0.6]
    back = load_pretrained(folder)
    assert back.config == fused.config
    assert (back.class_names, back.preprocessing) == (fused.class_names, fused.preprocessing)
    assert_state_equal(back, fused)


def test_keras_padding_becomes_same_with_a_warning(tmp_path: pathlib.Path) -> None:
    for to in ("huggingface", "timm"):
        with pytest.warns(UserWarning, match="padding becomes TensorFlow's SAME"):
            folder = export_pretrained(FusedMobileNet(3), tmp_path / to, to)
        assert load_pretrained(folder).config["padding"] == "same"


@pytest.mark.parametrize(
    ("to", "config", "message"),
    [
        ("huggingface", {"depth_multiplier": 2}, "depth_multiplier = 1 only, found 2"),
        ("huggingface", {"output_stride": 16}, "output_stride = 32 only, found 16"),
        ("timm", {"features_only": True}, "features_only = False only, found True"),
        ("timm", {"alpha": 0.5}, r"alpha in \[1.0, 1.25\] only, found 0.5"),
    ],
)
def test_what_others_do_not_have(
    tmp_path: pathlib.Path, to: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        export_pretrained(FusedMobileNet(3, padding="same", **config), tmp_path, to)
    assert not list(tmp_path.iterdir())


def test_unknown_formats(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"to must be one of .* got 'onnx'"):
        export_pretrained(FusedMobileNet(3, 0.25), tmp_path, "onnx")


def test_timm_head_convolution_is_refused(timm: Any, tmp_path: pathlib.Path) -> None:
    torch.save(timm.create_model("mobilenetv1_100h").state_dict(), tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"unexpected: conv_head.weight; .*mobilenetv1_100h"):
        load_pretrained(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mobilenet_v1", "hidden_act": "gelu"}, "activation must be"),
        ({"model_type": "mobilenet_v1", "layer_norm_eps": "x"}, "config.json is not"),
        ({"model_type": "mobilenet_v1", "image_size": "large"}, "config.json is not"),
        ({"model_type": "mobilenet_v1", "depth_multiplier": 0.5}, r"found \[8, 3, 3, 3\]"),
    ],
)
def test_bad_configurations(tmp_path: pathlib.Path, config: dict[str, Any], message: str) -> None:
    folder = export_pretrained(FusedMobileNet(3, 0.25, padding="same"), tmp_path, "huggingface")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        load_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"} | {"image_size": 0}))
    assert load_pretrained(folder).config["alpha"] == 0.25


def test_folders(tmp_path: pathlib.Path) -> None:
    with pytest.raises(WeightsError, match=r"expected model.safetensors or pytorch_model.bin"):
        load_pretrained(tmp_path)
    export_pretrained(FusedMobileNet(3, 0.25), tmp_path / "weights.safetensors")
    assert load_pretrained(tmp_path).config["num_classes"] == 3
