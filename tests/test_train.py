"""The training loop, its optimizers and its log, on a small synthetic data set."""

import argparse
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
from mobilenet_ext.commands import train as command
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
    optimizers,
)
from mobilenet_ext.training import train as run_training
from mobilenet_ext.training.learner import Learner
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


def rates(recipe: Recipe, epochs: int) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    recipe = dataclasses.replace(recipe, epochs=epochs).resolved()
    schedule = optimizers.make_schedule(recipe, optimizer, 10)
    found = []
    for _ in range(10 * epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_warms_up_and_ends_at_nothing() -> None:
    found = rates(Recipe(), 10)
    assert found[0] == pytest.approx(0.1)
    assert max(found) == found[10] == pytest.approx(1.0)
    assert found[55] == pytest.approx(0.5)
    assert found[-1] < 1e-3


def test_other_schedules() -> None:
    assert set(rates(Recipe(scheduler="constant"), 2)) == {1.0}
    linear = rates(Recipe(scheduler="linear", warmup_epochs=0.0), 2)
    assert linear == pytest.approx([1 - step / 20 for step in range(20)])
    step = rates(Recipe(scheduler="step", warmup_epochs=0.0), 4)
    assert step == pytest.approx([1.0] * 20 + [0.1] * 10 + [0.01] * 10)


def test_only_weights_decay_and_the_classifier_learns_slowly() -> None:
    model = FusedMobileNet(10, 0.25)
    groups = optimizers.make_optimizer(Recipe(lr=0.5).resolved(), model).param_groups
    weights, vectors, head, bias = groups
    assert len(weights["params"]) == 27
    assert len(vectors["params"]) == 2 * 27
    assert head["params"] == [model.classifier.weight]
    assert bias["params"] == [model.classifier.bias]
    assert vectors["weight_decay"] == bias["weight_decay"] == 0.0
    assert weights["weight_decay"] == head["weight_decay"] == 5e-4
    assert weights["lr"] == vectors["lr"] == 0.5
    assert head["lr"] == bias["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["sgd", "nadam", "adam", "adamw", "rmsprop"])
def test_every_optimizer_lowers_the_loss(name: str) -> None:
    recipe = Recipe(alpha=0.25, optimizer=name, epochs=1, classifier_lr=0.5).resolved()
    learner = Learner(recipe, 10, 8, ALONE)
    images, labels = next(source(1).validation(20, "symmetric"))
    learner.begin()
    losses = [float(learner.update([(images, labels)], step)[0]) for step in range(8)]
    assert losses[-1] < 0.8 * losses[0]


def test_accumulated_batches_count_like_one() -> None:
    recipe = dataclasses.replace(RECIPE, optimizer="sgd", lr=0.1, freeze=True, dropout=0.0)
    images, labels = next(source(1).validation(20, "symmetric"))
    results = []
    for parts in (1, 2):
        learner = Learner(recipe.resolved(), 10, 1, ALONE)
        learner.begin()
        before = {name: value.clone() for name, value in learner.model.state_dict().items()}
        batches = list(zip(images.chunk(parts), labels.chunk(parts), strict=True))
        loss, correct, count = learner.update(batches, 0).tolist()
        results.append((learner.model.classifier.weight.clone(), loss, correct))
        assert count == 20
        after = learner.model.state_dict()
        changed = [name for name in after if not torch.equal(after[name], before[name])]
        assert changed == ["classifier.weight", "classifier.bias"]  # the rest is frozen
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-6)
    assert results[0][1:] == pytest.approx(results[1][1:], rel=1e-5)


def test_average_forgets_the_start_and_follows_all_tensors() -> None:
    model = torch.nn.BatchNorm1d(2)
    average = optimizers.make_average(model, 0.9)
    values, expected = [1.0, 2.0, 4.0], 0.0
    for count, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(value)
        model.num_batches_tracked.fill_(count)
        average.update_parameters(model)
        decay = min(0.9, (1 + count) / (10 + count)) if count else 0.0
        expected = decay * expected + (1 - decay) * value
    kept = average.module
    assert kept.weight.tolist() == pytest.approx([expected] * 2)
    assert kept.running_mean.tolist() == pytest.approx([expected] * 2)
    assert kept.num_batches_tracked == 2


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


def test_every_field_of_a_recipe_is_an_option() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    for field in dataclasses.fields(Recipe):
        flag, choices = "--" + field.name.replace("_", "-"), field.metadata["choices"]
        default = getattr(RECIPES["modern"], field.name)
        if isinstance(field.default, bool):
            words, value = [f"--no-{flag[2:]}"] if default else [flag], not default
        elif choices:
            value = next(choice for choice in choices if choice != default)
            words = [flag, value]
        else:
            value = "text" if "str" in str(field.type) else 7
            words = [flag, str(value)]
        recipe = command.recipe_of(parser.parse_args(words))
        assert recipe == dataclasses.replace(RECIPES["modern"], **{field.name: value}), flag
        assert type(getattr(recipe, field.name)) is not int or "int" in str(field.type)
    assert command.recipe_of(parser.parse_args(["--amp"])).amp == "bfloat16"


def test_survey_recipe_is_the_survey() -> None:
    recipe = RECIPES["survey"].resolved()
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (200, 32, "nadam")
    assert (recipe.lr, recipe.scheduler, recipe.weight_decay) == (1e-3, "constant", 0.0)
    assert (recipe.shift, recipe.flip, recipe.pixels) == (0.1, True, "unit")
    assert (recipe.bn_momentum, recipe.label_smoothing, recipe.ema_decay) == (0.01, 0.0, 0.0)
    assert (recipe.mixup, recipe.cutmix, recipe.grad_clip) == (0.0, 0.0, 0.0)
    assert (recipe.classifier_lr, recipe.warmup_epochs, recipe.dropout) == (1.0, 0.0, 1e-3)
    model = FusedMobileNet(10, bn_momentum=recipe.bn_momentum)
    assert model.stem.bn.eps == 1e-3
    optimizer = optimizers.make_optimizer(recipe, model)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-7


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
