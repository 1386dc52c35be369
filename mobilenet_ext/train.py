"""Train MobileNet on CIFAR-10: a plain loop with a log, checkpoints and a stop on NaN."""

import contextlib
import csv
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .data import CLASSES, augment, normalize, shuffled_batches
from .fused_model import FusedMobileNet
from .model import MobileNet

T = TypeVar("T")
MODELS: dict[str, type[MobileNet]] = {"fused": FusedMobileNet, "stock": MobileNet}
LEARNING_RATES = {"nadam": 3e-3, "sgd": 0.15}
# The pooled features are hundreds of positive numbers: at the other layers' rate one step would
# throw the logits from one side to the other. With SGD its weights also start at zero.
CLASSIFIER_RATE = 0.02


class TrainingError(Exception):
    """Training cannot start or go on; the message says why."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a network is trained."""

    alpha: float = 1.0
    epochs: int = 1
    batch_size: int = 64
    optimizer: str = "sgd"  # "sgd": Nesterov momentum 0.9, weight decay 5e-4; or "nadam"
    lr: float | None = None  # peak learning rate; None: the optimizer's own in LEARNING_RATES
    shift: float = 0.03  # augmentation, fraction of height and width; the survey's is 0.1
    bn_momentum: float = 0.1  # Keras's 0.01 lags behind the weights in a short training
    seed: int = 0
    model: str = "fused"  # or "stock"
    channels_last: bool = True
    device: str = "cpu"


@dataclass(frozen=True)
class Epoch:
    """The line that an epoch leaves in the log."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float  # fraction of the validation images, 0 to 1
    learning_rate: float  # at the end of the epoch
    seconds: float

    def __str__(self) -> str:
        """Return the line that is printed."""
        return (
            f"epoch {self.epoch}: train loss {self.train_loss:.4f}, "
            f"validation loss {self.validation_loss:.4f}, "
            f"validation accuracy {100 * self.validation_accuracy:.2f} %, {self.seconds:.1f} s"
        )


Dataset = tuple[Tensor, Tensor]  # images [N, 3, 32, 32], uint8; labels [N], int64


def train(
    recipe: Recipe, training: Dataset, validation: Dataset, output: str | os.PathLike[str]
) -> list[Epoch]:
    """Train a network and write `log.csv`, `recipe.json` and the weights after every epoch.

    Args:
        recipe: Architecture, optimisation and seed.
        training: Images [N, 3, 32, 32], uint8, and labels [N], int64.
        validation: The same, for the accuracy after each epoch.
        output: Directory for the files; made if it is not there.

    Returns:
        One entry an epoch.

    Raises:
        TrainingError: If there are fewer images than a batch takes, the recipe names something
            unknown, safetensors is not installed, or the loss is no longer finite.
    """
    _check(recipe, len(training[0]))
    _safetensors()  # better now than after the first epoch
    folder = pathlib.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = MODELS[recipe.model](len(CLASSES), recipe.alpha, bn_momentum=recipe.bn_momentum)
    model.to(recipe.device)
    if recipe.optimizer == "sgd":
        nn.init.zeros_(cast("nn.Linear", model.classifier).weight)
    if recipe.channels_last:
        cast("Any", model).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(recipe, model)
    steps = len(training[0]) // recipe.batch_size
    scheduler = cosine_schedule(optimizer, steps * recipe.epochs)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    log = []
    for number in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        batches = shuffled_batches(*training, recipe.batch_size, generator)
        total = 0.0
        for step, (images, labels) in enumerate(_progress(batches, f"epoch {number}", steps), 1):
            shifted = augment(normalize(images), generator, shift=recipe.shift)
            prepared = _prepare(shifted, recipe)
            loss = _step(model, optimizer, prepared, labels.to(recipe.device))
            scheduler.step()
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss became {loss} in epoch {number}, step {step} of {steps}, at "
                    f"learning rate {_rate(optimizer):.2g}; try a lower --lr"
                )
            total += loss
        validation_loss, accuracy = evaluate(model, validation, recipe)
        seconds = time.perf_counter() - start
        rate = _rate(optimizer)
        log.append(Epoch(number, total / steps, validation_loss, accuracy, rate, seconds))
        print(log[-1], flush=True)
        _write_log(folder / "log.csv", log)
        save_weights(model, folder)
    return log


def _check(recipe: Recipe, images: int) -> None:
    if recipe.model not in MODELS:
        raise TrainingError(f"model must be one of {list(MODELS)}, got {recipe.model!r}")
    if recipe.optimizer not in LEARNING_RATES:
        known = list(LEARNING_RATES)
        raise TrainingError(f"optimizer must be one of {known}, got {recipe.optimizer!r}")
    if recipe.epochs < 1:
        raise TrainingError(f"epochs must be at least 1, got {recipe.epochs}")
    if not 0 <= recipe.shift < 1:
        raise TrainingError(f"shift must be in [0, 1), got {recipe.shift}")
    if not 2 <= recipe.batch_size <= images:
        raise TrainingError(
            f"batch size must be from 2 to the {images} training images, got {recipe.batch_size}"
        )


def make_optimizer(recipe: Recipe, model: MobileNet) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over all parameters.

    With SGD only weights of rank 2 and up decay, and the classifier learns at CLASSIFIER_RATE.
    """
    lr = LEARNING_RATES[recipe.optimizer] if recipe.lr is None else recipe.lr
    if recipe.optimizer == "nadam":
        return torch.optim.NAdam(model.parameters(), lr=lr)
    head = list(model.classifier.parameters())
    body = [*model.stem.parameters(), *model.blocks.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in body if weight.ndim > 1]},
        {"params": [vector for vector in body if vector.ndim <= 1], "weight_decay": 0.0},
        {"params": head, "lr": CLASSIFIER_RATE * lr},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)


def cosine_schedule(
    optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule over `steps`: linear warm-up for a tenth of them, then a half cosine."""
    warm_up = max(1, steps // 10)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _rate(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


def _prepare(images: Tensor, recipe: Recipe) -> Tensor:
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    return images.to(recipe.device).contiguous(memory_format=layout)


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def evaluate(
    model: nn.Module, dataset: Dataset, recipe: Recipe, batch_size: int = 500
) -> tuple[float, float]:
    """Return the mean loss and the accuracy (0 to 1) of `model` in eval mode."""
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    with torch.inference_mode():
        for images, labels in zip(*(half.split(batch_size) for half in dataset), strict=True):
            logits = model(_prepare(normalize(images), recipe)).cpu()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
    model.train(was_training)
    return loss / len(dataset[0]), correct / len(dataset[0])


def save_weights(model: MobileNet, folder: pathlib.Path) -> pathlib.Path:
    """Write the state_dict to weights.safetensors in `folder`, replacing it whole.

    The metadata holds the constructor's arguments, as JSON, under `architecture`.
    """
    save_file = _safetensors().save_file
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    path = folder / "weights.safetensors"
    with _draft(path) as draft:
        save_file(state, draft, metadata={"architecture": json.dumps(model.config)})
    return path


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise TrainingError(
            "weights are saved with safetensors: pip install 'mobilenet_ext[train]'"
        ) from error
    return safetensors.torch


@contextlib.contextmanager
def _draft(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a path to write to; it becomes `path` in one step once the block has succeeded."""
    draft = path.with_name(path.name + ".part")
    yield draft
    draft.replace(path)


def _write_log(path: pathlib.Path, log: list[Epoch]) -> None:
    with _draft(path) as draft, draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in log)


def _progress(items: Iterable[T], title: str, total: int) -> Iterable[T]:
    """Show a bar on a terminal; elsewhere the line that ends the epoch will do."""
    bar: Iterable[T] = tqdm(
        items, desc=title, total=total, leave=False, disable=not sys.stderr.isatty()
    )
    return bar
