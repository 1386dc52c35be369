"""The training loop on a small synthetic data set."""

import csv
import dataclasses
import json
import pathlib
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mobilenet_ext import FusedMobileNet, MobileNet
from mobilenet_ext import train as training
from mobilenet_ext.train import Recipe, TrainingError, train

RECIPE = Recipe(alpha=0.25, epochs=2, batch_size=16, optimizer="nadam", lr=3e-3)


def colourful(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images whose colour gives their class away."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    colours = torch.tensor([[(n * k) % 7 * 36 for k in (1, 2, 3)] for n in range(10)])
    noise = torch.randint(0, 40, (count, 3, 32, 32), generator=generator)
    return (colours[labels][:, :, None, None] + noise).clamp(max=255).to(torch.uint8), labels


def load_weights(folder: pathlib.Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(folder / "weights.safetensors")
    return loaded


def test_learns_and_writes_its_outputs(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validation = colourful(40, 1)
    log = train(RECIPE, colourful(240, 0), validation, tmp_path / "run")
    assert log[1].train_loss < 0.9 * log[0].train_loss
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["epoch 1", "epoch 2"]
    assert "validation accuracy" in printed[0]
    with (tmp_path / "run/log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [epoch.train_loss for epoch in log]
    assert json.loads((tmp_path / "run/recipe.json").read_text()) == dataclasses.asdict(RECIPE)
    assert not list((tmp_path / "run").glob("*.part"))
    model = MobileNet(10, 0.25)
    model.load_state_dict(load_weights(tmp_path / "run"))
    loss, accuracy = training.evaluate(model, validation, RECIPE)
    assert accuracy == log[1].validation_accuracy
    assert loss == pytest.approx(log[1].validation_loss, rel=1e-3)


def test_seed_decides_and_stock_agrees(tmp_path: pathlib.Path) -> None:
    dataset = colourful(64, 0)
    # Steps this small keep rounding from growing: a fresh network is chaotic.
    recipe = dataclasses.replace(RECIPE, epochs=1, lr=1e-6)
    first = train(recipe, dataset, dataset, tmp_path)
    again = train(recipe, dataset, dataset, tmp_path)
    other = train(dataclasses.replace(recipe, seed=1), dataset, dataset, tmp_path)
    stock = train(dataclasses.replace(recipe, model="stock"), dataset, dataset, tmp_path)
    assert again[0].train_loss == first[0].train_loss
    assert other[0].train_loss != first[0].train_loss
    assert stock[0].train_loss == pytest.approx(first[0].train_loss, rel=1e-3)


def test_not_a_number_stops(tmp_path: pathlib.Path) -> None:
    dataset = colourful(160, 0)
    recipe = dataclasses.replace(RECIPE, optimizer="sgd", lr=1e30)
    with pytest.raises(TrainingError, match=r"loss became (nan|inf) in epoch 1, step \d+ of 10"):
        train(recipe, dataset, dataset, tmp_path)
    assert not (tmp_path / "log.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 33}, "from 2 to the 32 training images, got 33"),
        ({"batch_size": 1}, "batch size must be from 2"),
        ({"shift": -0.1}, "shift must be in"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"model": "other"}, "model must be one of"),
        ({"optimizer": "adam"}, "optimizer must be one of"),
    ],
)
def test_impossible_recipes(
    tmp_path: pathlib.Path, change: dict[str, object], message: str
) -> None:
    dataset = colourful(32, 0)
    with pytest.raises(TrainingError, match=message):
        train(dataclasses.replace(RECIPE, **change), dataset, dataset, tmp_path)


def test_schedule_warms_up_and_ends_at_nothing() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = training.cosine_schedule(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[-1] < 1e-3


def test_only_weights_decay_and_the_classifier_learns_slowly() -> None:
    model = FusedMobileNet(10, 0.25)
    recipe = Recipe(optimizer="sgd", lr=0.5)
    weights, vectors, head = training.make_optimizer(recipe, model).param_groups
    assert len(weights["params"]) == 27
    assert len(vectors["params"]) == 2 * 27
    assert {id(x) for x in head["params"]} == {id(x) for x in model.classifier.parameters()}
    assert vectors["weight_decay"] == 0.0
    assert weights["weight_decay"] == head["weight_decay"] == 5e-4
    assert weights["lr"] == vectors["lr"] == 0.5
    assert head["lr"] == pytest.approx(0.01)


def test_weights_replace_the_old_ones_whole(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FusedMobileNet(10, 0.25)
    path = training.save_weights(model, tmp_path)
    before = path.read_bytes()

    def broken(*arguments: object, **named: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        training.save_weights(model, tmp_path)
    assert path.read_bytes() == before


def test_missing_safetensors_is_said_before_training(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    dataset = colourful(32, 0)
    with pytest.raises(TrainingError, match=r"pip install 'mobilenet_ext\[train\]'"):
        train(RECIPE, dataset, dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()
