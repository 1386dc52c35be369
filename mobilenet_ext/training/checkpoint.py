"""Checkpoints: all that a run needs to go on as if it had not been interrupted, written whole.

The state of random generators is not among it: every step begins with seeds of its own, made from
the recipe's seed and the step's place (see data/sampling.py).
"""

import pathlib
import pickle
from dataclasses import asdict, fields
from typing import Any

import torch

from ..weights.own import draft
from .errors import TrainingError
from .recipe import Recipe

NAME = "checkpoint.pt"


def save(folder: pathlib.Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers and containers of them to the folder's checkpoint."""
    with draft(folder / NAME) as path:
        torch.save(content, path)


def load(folder: pathlib.Path, recipe: Recipe) -> dict[str, Any] | None:
    """Return the folder's checkpoint, or None where there is none yet.

    Raises:
        TrainingError: It cannot be read, or belongs to another recipe.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise TrainingError(f"{path}: not a checkpoint that can be read: {error}") from error
    theirs, ours = content["recipe"], asdict(recipe)
    changed = [
        f"{each.name} was {theirs.get(each.name)!r}, now {ours[each.name]!r}"
        for each in fields(recipe)
        if theirs.get(each.name) != ours[each.name]
    ]
    if changed:
        raise TrainingError(f"{path} belongs to another recipe: {'; '.join(changed)}")
    return content
