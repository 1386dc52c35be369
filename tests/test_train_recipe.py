"""Recipes: their options, optimizers, schedules, and what one update of the weights does."""

import argparse
import dataclasses

import pytest
import torch
from test_train import ALONE, RECIPE
from training_data import source

from mobilenet_ext import FusedMobileNet
from mobilenet_ext.commands import train as command
from mobilenet_ext.training import RECIPES, Recipe, optimizers
from mobilenet_ext.training.learner import Learner


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
    recipe = Recipe(lr=0.5).resolved()
    groups = optimizers.make_optimizer(recipe, optimizers.parameter_groups(recipe, model))[
        0
    ].param_groups
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
    learner = Learner(recipe, 10, 20, ALONE)
    images, labels = next(source(1).validation(20, "symmetric"))
    learner.begin()
    losses = [float(learner.update([(images, labels)], step)[0]) for step in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_flat_groups_give_the_bits_of_separate_ones() -> None:
    plain, flat = FusedMobileNet(10, 0.25), FusedMobileNet(10, 0.25)
    for model in (plain, flat):
        model.to(memory_format=torch.channels_last)
    flat.load_state_dict(plain.state_dict())
    recipe = RECIPES["survey"].resolved()
    optimizer, groups = optimizers.make_optimizer(recipe, optimizers.parameter_groups(recipe, flat))
    expected = torch.optim.NAdam(plain.parameters(), lr=1e-3, eps=1e-7)
    for _ in range(3):
        for one, other in zip(plain.parameters(), flat.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        expected.step()
        for group in groups:
            group.gather()
        optimizer.step()
        for group in groups:
            group.scatter()
        for one, other in zip(plain.parameters(), flat.parameters(), strict=True):
            assert torch.equal(one, other)


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
    groups = optimizers.parameter_groups(recipe, model)
    optimizer, _ = optimizers.make_optimizer(recipe, groups)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-7
