"""MixUp and CutMix, by torchvision."""

from typing import Any, cast

from torch import Tensor

from .errors import TrainingError
from .recipe import Recipe


class Mixing:
    """Mixes the images of a batch and their labels; by MixUp or CutMix at random if both are on.

    Args:
        recipe: Says which, and how strongly.
        num_classes: Of the data.
    """

    def __init__(self, recipe: Recipe, num_classes: int) -> None:
        self._mix: Any = None
        if not (recipe.mixup or recipe.cutmix):
            return
        try:
            from torchvision.transforms import v2
        except ImportError as error:
            raise TrainingError(
                "mixup and cutmix need torchvision: pip install 'mobilenet_ext[train]'"
            ) from error
        kinds = ((v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix))
        chosen = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]
        self._mix = v2.RandomChoice(chosen)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [N, C, H, W], and labels [N] or, mixed, probabilities [N, K]."""
        if self._mix is None:
            return images, labels
        return cast("tuple[Tensor, Tensor]", self._mix(images, labels))
