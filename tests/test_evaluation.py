"""Scores of a classifier, over all images or parts of them."""

import pytest
import torch
from torch import nn

from mobilenet_ext.evaluation import evaluate


class Table(nn.Module):
    """Takes each image's first pixel for its class."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(images[:, 0, 0, 0].long(), 10) * 10.0


def test_scores() -> None:
    taken_for = torch.tensor([0, 0, 1, 2, 2, 9])
    labels = torch.tensor([0, 1, 1, 2, 3, 9])
    images = taken_for.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    halves = zip(images.split(4), labels.split(4), strict=True)
    scores = evaluate(Table(), halves, 10)
    assert scores.images == 6
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.confusion[1].tolist() == [1, 1] + [0] * 8
    assert scores.recall[:4].tolist() == [1, 0.5, 1, 0]
    assert scores.precision[:3].tolist() == [0.5, 1, 0.5]
    assert scores.recall[4].isnan()
    logits = torch.nn.functional.one_hot(taken_for, 10) * 10.0
    assert scores.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    best = logits.topk(5).indices
    assert scores.top5 == pytest.approx(float((best == labels[:, None]).any(1).float().mean()))


def test_sums_of_parts_give_the_scores_of_the_whole() -> None:
    images = torch.arange(10.0).view(10, 1, 1, 1)
    labels = torch.arange(10).roll(3)
    kept: list[torch.Tensor] = []

    def keep(sums: torch.Tensor) -> torch.Tensor:
        kept.append(sums)
        return sums

    for part in (slice(0, 4), slice(4, 10)):
        evaluate(Table(), [(images[part], labels[part])], 10, reduce=keep)
    whole = evaluate(Table(), [(images, labels)], 10)
    added = evaluate(Table(), [], 10, reduce=lambda sums: sum(kept, sums))
    assert torch.equal(added.confusion, whole.confusion)
    assert added.loss == pytest.approx(whole.loss)
    assert added.top5 == whole.top5


class Failing(nn.Module):
    """Raises in its second call."""

    calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 2:
            raise ArithmeticError
        return images


@pytest.mark.parametrize("mode", [True, False])
def test_evaluate_leaves_every_module_its_mode(mode: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), Failing(), Table()).train(mode)
    model[0].train(not mode)
    batches = [(torch.ones(2, 3, 1, 1), torch.zeros(2).long())] * 2
    with pytest.raises(ArithmeticError):
        evaluate(model, batches, 10)
    assert [module.training for module in model.modules()] == [mode, not mode, mode, mode]
    assert evaluate(model, batches, 10).images == 4
    assert [module.training for module in model.modules()] == [mode, not mode, mode, mode]
