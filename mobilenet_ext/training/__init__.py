"""Training: recipes, the loop, checkpoints, several processes.

`train` runs the loop; `mobilenet-ext train` is a command around it.
"""

from .distributed import World, default_device, world
from .errors import Stopped, TrainingError
from .log import Epoch
from .loop import RunOptions, train
from .recipe import RECIPES, Recipe

__all__ = [
    "RECIPES",
    "Epoch",
    "Recipe",
    "RunOptions",
    "Stopped",
    "TrainingError",
    "World",
    "default_device",
    "train",
    "world",
]
