"""`mobilenet-ext train`: train on CIFAR-10 or on a folder of images.

The options of a recipe are made from its fields.
"""

import argparse
import pathlib
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from .failure import fail

if TYPE_CHECKING:
    from ..data import Source
    from ..training import Recipe, World

HELP = "train on CIFAR-10 or on a folder of images; torchrun starts several processes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument_group("run").add_argument
    add("--data", type=pathlib.Path, metavar="DIR", help="CIFAR-10, or folders train and val")
    add("--download", action="store_true", help="fetch CIFAR-10, into --data if it is given")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/cifar10"), metavar="DIR")
    add("--resume", action="store_true", help="go on with the run in --output, if there is one")
    add("--overwrite", action="store_true", help="start again in --output")
    add("--val-every", type=int, default=1, metavar="N", help="epochs between validations")
    add("--save-every", type=int, default=0, metavar="N", help="checkpoint every N updates too")
    add("--tensorboard", action=argparse.BooleanOptionalAction, help="default: where installed")
    add("--device", help="default: cuda where torch sees a GPU, else cpu")
    add("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")
    add("--workers", type=int, default=2, metavar="N", help="image folders: processes that decode")
    add("--resolution", type=int, default=224, metavar="N", help="image folders: size of the input")
    group = parser.add_argument_group("recipe, and what to change of it")
    add_recipe_arguments(group)


def add_recipe_arguments(group: Any) -> None:
    """Add --recipe and an option for every field of a recipe."""
    from ..training import RECIPES, Recipe

    group.add_argument("--recipe", choices=list(RECIPES), default="modern", help="default: modern")
    for field in fields(Recipe):
        flag = "--" + field.name.replace("_", "-")
        text, choices = field.metadata["help"], field.metadata["choices"]
        options: dict[str, Any] = {"help": text + default_text(field.name)}
        options["default"] = argparse.SUPPRESS
        if isinstance(field.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif choices:
            options["choices"] = choices
            if field.name == "amp":
                options.update(nargs="?", const="bfloat16")
        else:
            options["type"] = kind_of(field.type, field.default)
            options["metavar"] = "X"
        group.add_argument(flag, **options)


def default_text(name: str) -> str:
    """Return what the recipes have for a field; nothing where all leave it open or off."""
    from ..training import RECIPES

    values = {key: getattr(recipe, name) for key, recipe in RECIPES.items()}
    if len(set(values.values())) == 1:
        value = values["modern"]
        return "" if value is None or value is False else f" (default {value})"
    told = ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
    return f" ({told})"


def kind_of(annotation: Any, default: Any) -> type:
    """Return what the text of an option becomes."""
    if default is not None:
        return type(default)
    return str if "str" in str(annotation) else float


def recipe_of(options: argparse.Namespace) -> "Recipe":
    """Return the named recipe with what the options change."""
    from ..training import RECIPES, Recipe

    names = [field.name for field in fields(Recipe)]
    changes = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return replace(RECIPES[options.recipe], **changes)


def open_source(options: argparse.Namespace, recipe: "Recipe", world: "World") -> "Source":
    """Return the data; with --download the first process of all fetches it."""
    from ..data import DataError
    from ..data.download import default_folder, download_cifar10
    from ..data.open import open_training

    folder = options.data or default_folder()
    if options.download:
        with world.first_alone():
            download_cifar10(folder)
    elif options.data is None and not folder.is_dir():
        raise DataError("--data DIR says where the images are; --download fetches CIFAR-10")
    return open_training(
        folder,
        resolution=options.resolution,
        crop_scale=recipe.crop_scale,
        workers=options.workers,
        device=world.device,
    )


def run(options: argparse.Namespace) -> int:
    """Train and say where the files are."""
    import torch

    from ..data import DataError
    from ..training import RunOptions, Stopped, TrainingError, train, world
    from ..weights import WeightsError

    if options.threads:
        torch.set_num_threads(options.threads)
    chosen = RunOptions(
        output=options.output,
        resume=options.resume,
        overwrite=options.overwrite,
        val_every=options.val_every,
        save_every=options.save_every,
        tensorboard=options.tensorboard,
    )
    try:
        recipe = recipe_of(options)
        with world(options.device) as processes:
            train(recipe, open_source(options, recipe, processes), chosen, processes)
            if processes.is_first:
                print(f"wrote {options.output}")
    except (DataError, TrainingError, WeightsError, ImportError, OSError) as error:
        return fail(error)
    except Stopped as stopped:
        print(f"{stopped}; --resume goes on with {options.output}")
        return stopped.status
    return 0
