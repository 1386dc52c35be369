"""The network that a recipe starts from, ready for its device and its processes."""

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..fused_model import FusedMobileNet
from ..model import MobileNet
from ..weights import load_pretrained
from .distributed import World
from .errors import TrainingError
from .recipe import Recipe

TYPES: dict[str, type[MobileNet]] = {"fused": FusedMobileNet, "stock": MobileNet}


def make_model(recipe: Recipe, num_classes: int, world: World) -> MobileNet:
    """Return the network of a resolved recipe, on its device; the seed decides its weights."""
    torch.manual_seed(recipe.seed)
    options: dict[str, Any] = {"dropout": recipe.dropout, "bn_momentum": recipe.bn_momentum}
    if recipe.init_from is not None:
        with world.first_alone():  # it may have to be downloaded
            model = load_start(recipe, num_classes, options)
    else:
        model = TYPES[recipe.model](num_classes, recipe.alpha, **options)
    # As large as the features are, other weights would make the first losses huge.
    if recipe.optimizer == "sgd" and (recipe.init_from is None or recipe.reset_classifier):
        nn.init.zeros_(cast("nn.Linear", model.classifier).weight)
    if recipe.freeze:
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
    model.to(world.device)
    if recipe.channels_last:
        cast("Any", model).to(memory_format=torch.channels_last)
    return model


def load_start(recipe: Recipe, num_classes: int, options: dict[str, Any]) -> MobileNet:
    """Return the network that `init_from` names, with a classifier for these classes.

    Raises:
        TrainingError: It has another alpha or other classes than the recipe and the data.
        WeightsError: The file is damaged or none that is known.
    """
    loaded: MobileNet = load_pretrained(cast("str", recipe.init_from), **options)
    found = loaded.config
    if found["alpha"] != recipe.alpha:
        raise TrainingError(
            f"{recipe.init_from} has alpha {found['alpha']:g}, the recipe {recipe.alpha:g}: give "
            f"--alpha {found['alpha']:g}"
        )
    if recipe.reset_classifier:
        loaded.reset_classifier(num_classes)
    elif found["num_classes"] != num_classes:
        raise TrainingError(
            f"{recipe.init_from} has {found['num_classes']} classes, the data {num_classes}: "
            "--reset-classifier gives a new classifier"
        )
    if recipe.model == "fused":
        return loaded
    stock = MobileNet(**found)
    stock.load_state_dict(loaded.state_dict())
    return stock


def set_training(model: MobileNet, recipe: Recipe) -> None:
    """Put the network into training mode; frozen parts keep their running statistics."""
    model.train()
    if recipe.freeze:
        model.stem.eval()
        model.blocks.eval()


def wrap(model: MobileNet, recipe: Recipe, world: World) -> nn.Module:
    """Return what the loop calls: with several processes DistributedDataParallel.

    It gives every process the running statistics of the first, so that one checkpoint holds all
    there is to know.

    Raises:
        TrainingError: Stock SyncBatchNorm is wanted on the CPU.
    """
    if world.size == 1:
        return model
    # A 1x1 kernel has the same memory in either format, and DistributedDataParallel warns anyway.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    devices = [world.device] if world.device.type == "cuda" else None
    wrapped = nn.parallel.DistributedDataParallel(model, device_ids=devices)
    if recipe.sync_bn:
        if recipe.model == "stock" and world.device.type == "cpu":
            raise TrainingError("sync_bn: on the CPU only the fused model has it, got model stock")
        # In place, and only now: DistributedDataParallel refuses it on a CPU.
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return wrapped


def prepare(images: Tensor, recipe: Recipe, device: torch.device) -> Tensor:
    """Return a batch on its device, in the recipe's memory format."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    return images.to(device, non_blocking=True).contiguous(memory_format=layout)
