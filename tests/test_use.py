"""evaluate, predict and export on a network that was just made; how one becomes the default."""

import json
import pathlib
from typing import Any

import pytest
import torch
from training_data import RECORDS, source, write_cifar

from mobilenet_ext import FusedMobileNet, cli
from mobilenet_ext.data import CLASSES, DataError, cifar10
from mobilenet_ext.data.labelled import match_classes
from mobilenet_ext.export import export_program
from mobilenet_ext.preprocessing import Preprocessing
from mobilenet_ext.training import publish
from mobilenet_ext.weights import WeightsError, embedded, load_pretrained, save_pretrained


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A network of CIFAR-10's classes, untrained, with running statistics of coarse pictures."""
    torch.manual_seed(0)
    model = FusedMobileNet(10, 0.25, bn_momentum=None)
    for _ in range(10):
        model(torch.rand(40, 3, 4, 4).mul(2).sub(1).repeat_interleave(8, 2).repeat_interleave(8, 3))
    path = tmp_path_factory.mktemp("network") / "network.safetensors"
    return save_pretrained(
        model, path, class_names=CLASSES, preprocessing=Preprocessing(resolution=32)
    )


@pytest.fixture
def data(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
    return write_cifar(tmp_path / "data")


def test_evaluate_prints_every_class(
    network: pathlib.Path,
    data: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["evaluate", "--model", str(network), "--data", str(data)]
    assert cli.main([*command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["images"] == RECORDS
    confusion = torch.tensor(content["confusion"])
    assert content["top1"] == pytest.approx(float(confusion.trace()) / RECORDS)
    model = load_pretrained(network)
    batches = source(1, RECORDS).validation(8, "symmetric")
    assert len(list(batches)) == 4
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{RECORDS} images: top-1 {100 * content['top1']:.2f} %")
    assert [line.split()[0] for line in lines[3:]] == list(model.class_names or ())
    pytest.importorskip("matplotlib")
    assert cli.main([*command, "--plot", str(tmp_path / "confusion.png")]) == 0
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_says_what_is_missing(
    network: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "nowhere"
    assert cli.main(["evaluate", "--model", str(network), "--data", str(nowhere)]) == 1
    assert "expected a folder of images, got nothing there" in capsys.readouterr().err
    assert cli.main(["evaluate", "--model", str(nowhere), "--data", str(tmp_path)]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_evaluate_refuses_a_device_that_is_not_there(
    network: pathlib.Path, data: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--model", str(network), "--data", str(data), "--device", "gpu"]
    assert cli.main(command) == 1
    message = "--device must be one that torch has here, got 'gpu'"
    assert capsys.readouterr().err == f"mobilenet-ext: error: {message}\n"


@pytest.mark.parametrize("config", [{"num_classes": 0}, {"features_only": True}])
@pytest.mark.parametrize("command", ["evaluate --data", "predict"])
def test_a_classifier_is_needed(
    command: str,
    config: dict[str, Any],
    data: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = FusedMobileNet(alpha=0.25, **config)
    path = save_pretrained(model, tmp_path / "x", preprocessing=Preprocessing(resolution=32))
    assert cli.main([*command.split(), str(data), "--model", str(path)]) == 1
    message = f"--model must be a network with a classifier, got {str(path)!r}"
    assert capsys.readouterr().err == f"mobilenet-ext: error: {message}\n"


def test_classes_are_matched_by_name() -> None:
    model = FusedMobileNet(3, 0.25)
    assert match_classes(("x", "y", "z"), model).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="the model has 3 classes, the data 2"):
        match_classes(("x", "y"), model)
    model.class_names = ("a", "b", "c")
    assert match_classes(("c", "a"), model).tolist() == [2, 0]
    with pytest.raises(DataError, match="does not know the data's classes x, y"):
        match_classes(("a", "x", "y"), model)


@pytest.fixture
def photos(tmp_path: pathlib.Path) -> list[str]:
    """The same picture upright, turned with an EXIF note of it, grey, and something else."""
    image_module = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (4, 6, 3), generator=generator, dtype=torch.uint8)
    pixels = coarse.repeat_interleave(16, 0).repeat_interleave(16, 1)
    image = image_module.fromarray(pixels.numpy())
    image.save(tmp_path / "upright.png")
    exif = image_module.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    image.transpose(image_module.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    image.convert("LA").save(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("no image")
    whole = (tmp_path / "upright.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    names = ("upright", "turned", "grey", "text", "half", "absent")
    return [str(tmp_path / f"{name}.png") for name in names]


def test_predict(
    network: pathlib.Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", *photos, "--model", str(network), "--json", "--top", "3"]) == 1
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [pathlib.Path(answer["image"]).stem for answer in answers] == [
        "upright",
        "turned",
        "grey",
    ]
    assert answers[0]["classes"] == answers[1]["classes"] != answers[2]["classes"]
    chances = [each["probability"] for each in answers[0]["classes"]]
    assert len(chances) == 3
    assert chances == sorted(chances, reverse=True)
    errors = printed.err.splitlines()
    places = [pathlib.Path(line.split(": ")[2]) for line in errors]
    assert [place.stem for place in places] == ["text", "half", "absent"]
    assert "not an image of a kind that Pillow knows" in errors[0]
    assert cli.main(["predict", photos[0], "--model", str(network)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == photos[0]
    assert lines[1].split()[:2] == [
        answers[0]["classes"][0]["class"],
        f"{100 * chances[0]:.1f}",
    ]


def test_export_onnx(network: pathlib.Path, tmp_path: pathlib.Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "network.onnx"
    assert cli.main(["export", str(path), "--model", str(network)]) == 0
    session = onnxruntime.InferenceSession(path)
    model = load_pretrained(network).eval()
    images = torch.randn(5, 3, 32, 32)
    (logits,) = session.run(["logits"], {"input": images.numpy()})
    expected = model(images).detach()
    tolerance = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=tolerance)
    told = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(told["class_names"])) == CLASSES
    assert Preprocessing.from_dict(json.loads(told["preprocessing"])) == model.preprocessing


def test_export_program(
    network: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "network.pt2"
    assert cli.main(["export", str(path), "--model", str(network), "--resolution", "48"]) == 0
    program = torch.export.load(path)
    assert all("mobilenet_ext" not in str(node.target) for node in program.graph.nodes)
    model = load_pretrained(network).eval()
    images = torch.randn(5, 3, 48, 48)
    torch.testing.assert_close(program.module()(images), model(images).detach())
    assert cli.main(["export", "network.tflite", "--model", str(network)]) == 1
    assert "a name in .onnx or .pt2" in capsys.readouterr().err


def test_export_leaves_the_network_as_it_is(tmp_path: pathlib.Path) -> None:
    """Its modes, its dtype, its device; what is exported and compared is float32 on the CPU."""
    model = FusedMobileNet(10, 0.25).double()
    model.blocks[3].eval()
    modes = [module.training for module in model.modules()]
    export_program(model, tmp_path / "x.pt2", 32)
    assert [module.training for module in model.modules()] == modes
    assert model.classifier.weight.dtype == torch.float64


@pytest.fixture
def nothing_embedded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    path = tmp_path / "cifar10-alpha0.5.safetensors"
    monkeypatch.setattr(embedded, "FILE", path)
    return path


def test_without_the_embedded_file_it_is_said(
    nothing_embedded: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WeightsError, match="cifar10: this build of mobilenet_ext comes without"):
        load_pretrained("cifar10")
    assert cli.main(["predict", "photo.png"]) == 1
    assert "mobilenet-ext train" in capsys.readouterr().err


def test_a_finished_run_becomes_the_embedded_network(
    data: pathlib.Path, tmp_path: pathlib.Path, nothing_embedded: pathlib.Path
) -> None:
    run = tmp_path / "run"
    sizes = ["--alpha", "0.5", "--epochs", "1", "--batch-size", "32", "--device", "cpu"]
    command = ["train", "--data", str(data), "--output", str(run), "--no-tensorboard", *sizes]
    assert cli.main(command) == 0
    assert publish.main([str(run), "--target", str(nothing_embedded)]) == 0
    assert nothing_embedded.stat().st_size < publish.MAX_BYTES
    card = nothing_embedded.with_suffix(".md").read_text()
    assert "834,666 parameters" in card
    assert "seed 0" in card
    assert load_pretrained("cifar10").class_names == CLASSES
    assert cli.main(["evaluate", "--data", str(data)]) == 0
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({**recipe, "epochs": 2}))
    with pytest.raises(ValueError, match="not finished: epoch 1 of 2"):
        publish.publish(run, nothing_embedded)


def test_a_path_that_exists_goes_before_the_name(
    data: pathlib.Path,
    tmp_path: pathlib.Path,
    nothing_embedded: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But not where nothing is named: what a command takes then is the same everywhere."""
    preprocessing = Preprocessing(resolution=32)
    save_pretrained(FusedMobileNet(10, 0.5), nothing_embedded, preprocessing=preprocessing)
    monkeypatch.chdir(tmp_path)
    pathlib.Path("cifar10").mkdir()  # of images, say
    assert load_pretrained("cifar10").config["num_classes"] == 10
    save_pretrained(FusedMobileNet(7, 0.25), "cifar10/model.safetensors")
    for path in ("cifar10", pathlib.Path("cifar10")):
        assert load_pretrained(path).config["num_classes"] == 7
    assert cli.main(["evaluate", "--data", str(data)]) == 0
    assert cli.main(["evaluate", "--data", str(data), "--model", "cifar10"]) == 1


@pytest.mark.skipif(not embedded.FILE.is_file(), reason="no embedded weights in this build")
def test_embedded_network_fits_its_card() -> None:
    model = load_pretrained("cifar10")
    assert model.config["alpha"] == 0.5
    assert model.class_names == CLASSES
    assert embedded.FILE.stat().st_size <= publish.MAX_BYTES
    assert "% top-1" in embedded.CARD.read_text()
