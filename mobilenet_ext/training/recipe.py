"""A recipe: everything that decides, together with the data, which weights come out of training.

Every field is an option of `mobilenet-ext train` too; what it says there stands beside it here.
"""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .errors import TrainingError

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Defaults:
    """What suits an optimizer when the recipe leaves it open."""

    lr: float
    weight_decay: float
    # The pooled features are hundreds of positive numbers: with SGD at the other layers' rate one
    # step would throw the logits from one side to the other.
    classifier_lr: float = 1.0


OPTIMIZERS = {
    "sgd": Defaults(lr=0.15, weight_decay=5e-4, classifier_lr=0.02),
    "nadam": Defaults(lr=3e-3, weight_decay=0.0),
    "adam": Defaults(lr=3e-3, weight_decay=0.0),
    "adamw": Defaults(lr=3e-3, weight_decay=0.05),
    "rmsprop": Defaults(lr=1e-3, weight_decay=4e-5),
}
SCHEDULERS = ("cosine", "linear", "step", "constant")
AMP = ("off", "bfloat16", "float16")
MODELS = ("fused", "stock")
PIXELS = ("symmetric", "unit")


def option(default: Any, text: str, *choices: str) -> Any:
    """Return a field with its help and its choices."""
    return field(default=default, metadata={"help": text, "choices": choices or None})


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. None stands for what suits the optimizer or the schedule."""

    alpha: float = option(1.0, "width multiplier")
    model: str = option("fused", "fused kernels, or stock torch.nn to compare with", *MODELS)
    dropout: float = option(1e-3, "before the classifier")
    bn_momentum: float = option(0.1, "weight of a batch in the running statistics; Keras's 0.01")
    pixels: str = option("symmetric", "range of the input: -1 to 1, or 0 to 1", *PIXELS)
    init_from: str | None = option(None, "weights to start from: a file or a pretrained name")
    reset_classifier: bool = option(False, "with --init-from: a new classifier for these classes")
    freeze: bool = option(False, "train the classifier only: the rest is a feature extractor")

    epochs: int = option(30, "passes over the training images")
    batch_size: int = option(64, "images a batch, over all processes")
    accumulate: int = option(1, "batches whose gradients are averaged for one update")
    optimizer: str = option("sgd", "SGD with Nesterov momentum, or another", *OPTIMIZERS)
    lr: float | None = option(None, "peak learning rate")
    momentum: float = option(0.9, "of SGD and RMSprop")
    weight_decay: float | None = option(None, "of the weights; biases and BatchNorm have none")
    classifier_lr: float | None = option(None, "the classifier's learning rate, as a share of --lr")
    scheduler: str = option("cosine", "how the learning rate falls after the warm-up", *SCHEDULERS)
    warmup_epochs: float | None = option(None, "linear warm-up; default a tenth of all epochs")
    label_smoothing: float = option(0.1, "probability spread over all classes")
    ema_decay: float = option(0.998, "average of the weights that is validated and saved; 0: none")
    grad_clip: float = option(0.0, "largest norm of all gradients together; 0: any")

    shift: float = option(0.1, "largest random shift, as a share of height and width")
    flip: bool = option(True, "mirror half of the images")
    crop_scale: float = option(0.35, "image folders: least share of the area that a crop keeps")
    mixup: float = option(0.0, "alpha of MixUp; 0: none; needs torchvision")
    cutmix: float = option(0.0, "alpha of CutMix; 0: none; needs torchvision")

    sync_bn: bool = option(False, "BatchNorm over the batch of all processes")
    amp: str = option("off", "mixed precision; alone: bfloat16", *AMP)
    channels_last: bool = option(True, "memory format; the fast one for the kernels")
    seed: int = option(0, "decides initial weights, order, augmentation and dropout")

    def resolved(self) -> "Recipe":
        """Return the recipe with everything that it left open filled in.

        Raises:
            TrainingError: A field is out of range.
        """
        self._check_choices()
        suits = OPTIMIZERS[self.optimizer]
        open_fields = {
            "lr": suits.lr,
            "weight_decay": suits.weight_decay,
            "classifier_lr": suits.classifier_lr,
            "warmup_epochs": 0.0 if self.scheduler == "constant" else self.epochs / 10,
        }
        chosen: dict[str, Any] = {
            name: value for name, value in open_fields.items() if getattr(self, name) is None
        }
        full = replace(self, **chosen)
        full._check_ranges()
        return full

    def _check_choices(self) -> None:
        for each in fields(self):
            choices, value = each.metadata["choices"], getattr(self, each.name)
            if choices and value not in choices:
                raise TrainingError(f"{each.name} must be one of {list(choices)}, got {value!r}")

    def _check_ranges(self) -> None:
        ranges = {
            ("epochs", "accumulate"): ("at least 1", lambda x: x >= 1),
            ("batch_size",): ("at least 2", lambda x: x >= 2),
            ("alpha",): ("finite and at least 1/32", lambda x: 1 / 32 <= x < math.inf),
            ("lr", "crop_scale"): ("positive", lambda x: 0 < x < math.inf),
            ("bn_momentum",): ("in [0, 1]", lambda x: 0 <= x <= 1),
            ("shift", "momentum", "label_smoothing", "ema_decay", "dropout"): (
                "in [0, 1)",
                lambda x: 0 <= x < 1,
            ),
            ("weight_decay", "classifier_lr", "warmup_epochs", "grad_clip", "mixup", "cutmix"): (
                "at least 0",
                lambda x: 0 <= x < math.inf,
            ),
        }
        for names, (expected, valid) in ranges.items():
            for name in names:
                if not valid(getattr(self, name)):
                    raise TrainingError(f"{name} must be {expected}, got {getattr(self, name)}")


# "survey": as the Keras survey trained; "modern": what has got better since.
RECIPES = {
    "modern": Recipe(),
    "survey": Recipe(
        bn_momentum=0.01,
        pixels="unit",
        epochs=200,
        batch_size=32,
        optimizer="nadam",
        lr=1e-3,
        scheduler="constant",
        label_smoothing=0.0,
        ema_decay=0.0,
        crop_scale=1.0,
    ),
}
