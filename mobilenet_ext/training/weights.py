"""The weights that a run leaves."""

import json
import pathlib
from types import ModuleType

from ..model import MobileNet
from .checkpoint import draft
from .errors import TrainingError

NAME = "weights.safetensors"


def safetensors() -> ModuleType:
    """Return safetensors.torch, or say how to install it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise TrainingError(
            "weights are saved with safetensors: pip install 'mobilenet_ext[train]'"
        ) from error
    return safetensors.torch


def save_weights(model: MobileNet, folder: pathlib.Path) -> pathlib.Path:
    """Write the state_dict to weights.safetensors in `folder`, replacing it whole.

    The metadata holds the constructor's arguments, as JSON, under `architecture`.
    """
    save_file = safetensors().save_file
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    path = folder / NAME
    with draft(path) as unfinished:
        save_file(state, unfinished, metadata={"architecture": json.dumps(model.config)})
    return path
