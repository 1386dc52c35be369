"""Writes a Keras model's weights as old Keras did, whose files are the published ones.

Keras 3 writes other names; the layout is that of Keras 2: attributes `layer_names` and
`weight_names`, split where they get long, and `:0` after each weight's name.
"""

import pathlib
from typing import Any

import h5py
import numpy as np


def write_legacy(
    model: Any,
    path: pathlib.Path,
    *,
    suffix: str = ":0",
    text: bool = False,
    chunks: int = 1,
    root: str = "/",
) -> pathlib.Path:
    """`text`: names as str, not bytes; `chunks`: attributes that `layer_names` is split over."""

    def names(values: list[str]) -> Any:
        if not values:
            return np.array([], dtype="S1")
        return np.array(values, dtype=h5py.string_dtype()) if text else np.array(values, "S")

    with h5py.File(path, "w") as file:
        group = file.require_group(root)
        layers = [layer.name for layer in model.layers]
        if chunks == 1:
            group.attrs["layer_names"] = names(layers)
        else:
            for number, part in enumerate(np.array_split(layers, chunks)):
                group.attrs[f"layer_names{number}"] = names(list(part))
        for layer in model.layers:
            of_layer = group.create_group(layer.name)
            weights = {weight_name(layer, weight) + suffix: weight for weight in layer.weights}
            of_layer.attrs["weight_names"] = names(list(weights))
            for name, weight in weights.items():
                of_layer[name] = weight.numpy()
    return path


def weight_name(layer: Any, weight: Any) -> str:
    depthwise = type(layer).__name__ == "DepthwiseConv2D" and weight.name == "kernel"
    return f"{layer.name}/{'depthwise_kernel' if depthwise else weight.name}"
