"""Reads the weights of keras.applications.MobileNet.

Keras goes by order, not by names, and so does this: 27 convolutions, each with its BatchNorm, and
perhaps a classifier. Kernels are [K, K, in, out], depthwise ones [K, K, C, multiplier].
"""

from __future__ import annotations

import re

from torch import Tensor

from ..preprocessing import Preprocessing
from .architecture import infer_architecture
from .checkpoint import Checkpoint, StoredTensor
from .class_names import imagenet_class_names
from .errors import WeightsError
from .hdf5 import KerasLayer
from .naming import LAYERS

NORM_FIELDS = {  # Keras's, in its order
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
CROP = 0.875  # side of the crop by the image's shorter side, in TF-slim's evaluation


def read_keras(path: str, layers: list[KerasLayer]) -> Checkpoint:
    """Give the layers' weights their names here and torch's layout.

    Raises:
        WeightsError: they are not those of a MobileNetV1.
    """
    source = f"{path} (Keras)"
    convolutions, norms, heads = _sort(source, layers)
    tensors: dict[str, StoredTensor] = {}
    names: dict[str, str] = {}

    def put(name: str, theirs: str, tensor: StoredTensor) -> None:
        tensors[name], names[name] = tensor, theirs

    for place, conv, norm in zip(LAYERS, convolutions, norms, strict=True):
        ((theirs, kernel),) = conv.weights.items()
        depthwise = place.endswith("depthwise")
        put(f"{place}.conv.weight", theirs, _kernel(source, theirs, kernel, depthwise))
        for field, theirs, vector in _norm_fields(norm):
            put(f"{place}.bn.{field}", theirs, vector)
    for head in heads:
        (theirs, kernel), (theirs_bias, bias) = head.weights.items()
        put("classifier.weight", theirs, _classifier(source, theirs, kernel))
        put("classifier.bias", theirs_bias, bias)
    architecture = infer_architecture(source, tensors)
    return Checkpoint(
        source,
        tensors,
        {**architecture, "padding": "keras", "bn_eps": 1e-3, "bn_momentum": 0.01},
        class_names=imagenet_class_names(architecture["num_classes"]),
        preprocessing=_preprocessing(path),
        names=names,
    )


def _sort(
    source: str, layers: list[KerasLayer]
) -> tuple[list[KerasLayer], list[KerasLayer], list[KerasLayer]]:
    """Tell convolutions, BatchNorms and classifier by how many weights they have."""
    by_weights: dict[int, list[KerasLayer]] = {}
    for layer in layers:
        by_weights.setdefault(len(layer.weights), []).append(layer)
    convolutions, norms, heads = (by_weights.pop(count, []) for count in (1, 4, 2))
    if by_weights:
        odd = next(iter(by_weights.values()))[0]
        raise WeightsError(
            f"{source}: {odd.name}: expected a layer with 1, 2 or 4 weights, "
            f"found {len(odd.weights)}"
        )
    convolutions = _alternate(convolutions)
    found = (len(convolutions), len(norms), len(heads))
    if found[:2] != (len(LAYERS), len(LAYERS)) or len(heads) > 1:
        names = ", ".join(layer.name for layer in layers[:8])
        raise WeightsError(
            f"{source}: expected the layers of a MobileNetV1, {len(LAYERS)} convolutions, "
            f"{len(LAYERS)} BatchNorms and up to 1 classifier; found {found[0]}, {found[1]} and "
            f"{found[2]}: {names}, ..."
        )
    return convolutions, norms, heads


def _alternate(convolutions: list[KerasLayer]) -> list[KerasLayer]:
    """Bring Keras 3's tree, which is sorted by class of layer, into the network's order."""
    depthwise = [layer for layer in convolutions if layer.name.startswith("depthwise_conv2d")]
    others = [layer for layer in convolutions if layer not in depthwise]
    if len(depthwise) != len(LAYERS) // 2 or len(others) != len(depthwise) + 1:
        return convolutions
    ordered = others[:1]
    for pair in zip(depthwise, others[1:], strict=True):
        ordered += pair
    return ordered


def _norm_fields(layer: KerasLayer) -> list[tuple[str, str, StoredTensor]]:
    """Field here, name there, and vector; by name where the names tell, else by order."""
    leaves = [name.rsplit("/", 1)[-1].split(":")[0] for name in layer.weights]
    if set(leaves) != set(NORM_FIELDS):
        leaves = list(NORM_FIELDS)
    return [
        (NORM_FIELDS[leaf], theirs, vector)
        for leaf, (theirs, vector) in zip(leaves, layer.weights.items(), strict=True)
    ]


def _kernel(source: str, name: str, kernel: StoredTensor, depthwise: bool) -> StoredTensor:
    if len(kernel.shape) != 4:
        raise WeightsError(
            f"{source}: {name}: expected [K, K, in, out], found {list(kernel.shape)}"
        )
    rows, columns, inputs, outputs = kernel.shape
    if not depthwise:
        return kernel.map((outputs, inputs, rows, columns), lambda value: value.permute(3, 2, 0, 1))

    def change(value: Tensor) -> Tensor:
        return value.permute(2, 3, 0, 1).reshape(inputs * outputs, 1, rows, columns)

    return kernel.map((inputs * outputs, 1, rows, columns), change)


def _classifier(source: str, name: str, kernel: StoredTensor) -> StoredTensor:
    """A 1x1 convolution [1, 1, C, classes], or a Dense layer [C, classes]."""
    *window, features, classes = (1, 1, *kernel.shape)[-4:] if kernel.shape else (0, 0, 0, 0)
    if window != [1, 1] or len(kernel.shape) not in (2, 4):
        raise WeightsError(
            f"{source}: {name}: expected [1, 1, C, classes], found {list(kernel.shape)}"
        )
    return kernel.map((classes, features), lambda value: value.reshape(features, classes).t())


def _preprocessing(path: str) -> Preprocessing:
    """Keras's x / 127.5 - 1; the resolution is in the file's name or not known, then 224."""
    match = re.search(r"_(224|192|160|128)_tf(_no_top)?\.h5$", path)
    resolution = int(match[1]) if match else 224
    return Preprocessing(resolution, int(resolution / CROP))
