"""The training loop, its optimizers and its log, on a small synthetic data set."""

import csv
import dataclasses
import json
import pathlib
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_data import source

from mobilenet_ext import FusedMobileNet, MobileNet
from mobilenet_ext.data import CLASSES
from mobilenet_ext.data.augment import normalize
from mobilenet_ext.evaluation import evaluate
from mobilenet_ext.training import (
    RECIPES,
    Epoch,
    Recipe,
    RunOptions,
    TrainingError,
    World,
)
from mobilenet_ext.training import train as run_training
from mobilenet_ext.weights import load_pretrained, save_pretrained

RECIPE = dataclasses.replace(
    RECIPES["survey"], alpha=0.25, epochs=2, batch_size=16, lr=3e-3, bn_momentum=0.1
)
ALONE = World(0, 1, torch.device("cpu"))


def train(recipe: Recipe, images: int, folder: pathlib.Path, **options: object) -> list[Epoch]:
    run = RunOptions(folder, overwrite=True, tensorboard=False)
    return run_training(recipe, source(images), dataclasses.replace(run, **options), ALONE)


def load_weights(folder: pathlib.Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(folder / "weights.safetensors")
    return loaded


def test_learns_and_writes_its_outputs(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = train(RECIPE, 240, tmp_path / "run")
    assert log[1].train_loss < 0.9 * log[0].train_loss
    assert log[1].train_accuracy > 0.2
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["epoch 1", "epoch 2"]
    assert "validation accuracy" in printed[0]
    with (tmp_path / "run/log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [epoch.train_loss for epoch in log]
    assert float(rows[1]["total_seconds"]) == pytest.approx(sum(epoch.seconds for epoch in log))
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    assert recipe == dataclasses.asdict(RECIPE.resolved())
    assert not list((tmp_path / "run").glob("*.part"))
    model = MobileNet(10, 0.25)
    model.load_state_dict(load_weights(tmp_path / "run"))
    images, labels = next(source(240).validation(20, "unit"))
    scores = evaluate(model, [(images, labels)], 10)
    assert scores.accuracy == log[1].validation_accuracy
    assert scores.loss == pytest.approx(log[1].validation_loss, rel=1e-3)


def test_seed_decides_and_stock_agrees(tmp_path: pathlib.Path) -> None:
    # Steps this small keep rounding from growing: a fresh network is chaotic.
    recipe = dataclasses.replace(RECIPE, epochs=1, lr=1e-6)
    first = train(recipe, 64, tmp_path)
    again = train(recipe, 64, tmp_path)
    other = train(dataclasses.replace(recipe, seed=1), 64, tmp_path)
    stock = train(dataclasses.replace(recipe, model="stock"), 64, tmp_path)
    assert again[0].train_loss == first[0].train_loss
    assert other[0].train_loss != first[0].train_loss
    assert stock[0].train_loss == pytest.approx(first[0].train_loss, rel=1e-3)


def test_not_a_number_stops(tmp_path: pathlib.Path) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer="sgd", lr=1e30)
    with pytest.raises(TrainingError, match=r"loss became (nan|inf) in epoch 1, step \d+ of 10"):
        train(recipe, 160, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 33}, r"at most the 32 training images, got 33 × 1"),
        ({"accumulate": 3}, r"at most the 32 training images, got 16 × 3"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"shift": -0.1}, r"shift must be in \[0, 1\), got -0.1"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
        ({"model": "other"}, "model must be one of"),
        ({"optimizer": "lamb"}, "optimizer must be one of"),
    ],
)
def test_impossible_recipes(
    tmp_path: pathlib.Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(dataclasses.replace(RECIPE, **change), 32, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_clipping_and_mixed_precision_train(tmp_path: pathlib.Path) -> None:
    recipe = dataclasses.replace(
        RECIPE, epochs=1, amp="bfloat16", grad_clip=1.0, ema_decay=0.9, label_smoothing=0.1
    )
    (epoch,) = train(recipe, 64, tmp_path)
    assert 1 < epoch.train_loss < 10


def test_validation_every_other_epoch(tmp_path: pathlib.Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=3)
    log = train(recipe, 32, tmp_path, val_every=2)
    assert [epoch.validation_loss is None for epoch in log] == [True, False, False]
    assert (tmp_path / "log.csv").read_text().splitlines()[1].split(",")[3] == ""


def test_validation_never_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TrainingError, match="val_every must be at least 1, got 0"):
        train(RECIPE, 32, tmp_path, val_every=0)


def test_a_run_is_not_overwritten_by_accident(tmp_path: pathlib.Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1)
    train(recipe, 32, tmp_path)
    before = load_weights(tmp_path)
    with pytest.raises(TrainingError, match="holds a run already: --resume"):
        train(dataclasses.replace(recipe, seed=1), 32, tmp_path, overwrite=False)
    with pytest.raises(TrainingError, match="another recipe: seed was 0, now 1"):
        train(dataclasses.replace(recipe, seed=1), 32, tmp_path, resume=True)
    after = load_weights(tmp_path)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_weights_know_their_classes_and_pixels(tmp_path: pathlib.Path) -> None:
    train(dataclasses.replace(RECIPE, epochs=1), 32, tmp_path)
    model = load_pretrained(tmp_path / "weights.safetensors")
    assert model.class_names == CLASSES
    assert model.preprocessing is not None
    pixels = torch.arange(0, 255, dtype=torch.uint8).view(1, 1, 15, 17).expand(1, 3, 15, 17)
    torch.testing.assert_close(model.preprocessing.normalize(pixels), normalize(pixels, "unit"))
    assert model.preprocessing.resolution == 32


def test_starts_from_weights(tmp_path: pathlib.Path) -> None:
    start = FusedMobileNet(7, 0.25)
    path = save_pretrained(start, tmp_path / "start.safetensors")
    recipe = dataclasses.replace(RECIPE, init_from=str(path), freeze=True, epochs=1)
    with pytest.raises(TrainingError, match="has 7 classes, the data 10: --reset-classifier"):
        train(recipe, 32, tmp_path / "run")
    recipe = dataclasses.replace(recipe, reset_classifier=True)
    with pytest.raises(TrainingError, match=r"has alpha 0.25, the recipe 0.5: give --alpha 0.25"):
        train(dataclasses.replace(recipe, alpha=0.5), 32, tmp_path / "run")
    for model in ("fused", "stock"):
        train(dataclasses.replace(recipe, model=model), 32, tmp_path / "run")
        trained, before = load_weights(tmp_path / "run"), start.state_dict()
        changed = {name for name in trained if not torch.equal(trained[name], before[name])}
        assert changed == {"classifier.weight", "classifier.bias"}


def test_normalised_range_follows_the_recipe() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(normalize(pixels, "unit").flatten(), torch.tensor([0.0, 0.2, 1.0]))


def test_mixed_labels_train(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torchvision")
    recipe = dataclasses.replace(RECIPE, epochs=1, mixup=0.2, cutmix=1.0)
    (epoch,) = train(recipe, 32, tmp_path)
    assert 1 < epoch.train_loss < 10


def test_mixing_without_torchvision_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(TrainingError, match=r"mixup and cutmix need torchvision: pip install"):
        train(dataclasses.replace(RECIPE, mixup=0.2), 32, tmp_path)


def test_tensorboard_gets_the_numbers(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (epoch,) = train(dataclasses.replace(RECIPE, epochs=1), 32, tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (loss,) = events.Scalars("train/loss")
    assert loss.step == 1
    assert loss.value == pytest.approx(epoch.train_loss)
    assert "validation/accuracy" in events.Tags()["scalars"]
