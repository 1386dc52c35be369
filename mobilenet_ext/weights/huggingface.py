"""Hugging Face's MobileNetV1ForImageClassification: tensors and config.json, both ways.

The files on the hub have 1,001 classes, of which 0 is background. transformers hands TensorFlow's
decay of 0.9997 to torch as momentum; here it is what was meant, 0.0003. Its default dropout of
0.999 is a probability to keep, taken for one to drop; here it is 0.001.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..model import MobileNet
from ..preprocessing import Preprocessing
from .architecture import infer_architecture
from .checkpoint import Checkpoint
from .class_names import imagenet_class_names
from .containers import Container
from .errors import WeightsError
from .naming import huggingface_names, own_names, warn_of_padding

MODEL_TYPE = "mobilenet_v1"
PREFIX = "mobilenet_v1."
DROPPED_KEEP_PROBABILITY = 0.9  # no one drops that much before a classifier
INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


def is_huggingface(container: Container) -> bool:
    """Tell whether a container has Hugging Face's names, with or without the model's prefix."""
    names = container.tensors
    return any(f"{prefix}conv_stem.convolution.weight" in names for prefix in (PREFIX, ""))


def read_huggingface(
    container: Container, config: dict[str, Any], processor: dict[str, Any]
) -> Checkpoint:
    """Read tensors, and config.json and preprocessor_config.json where they are beside them.

    Raises:
        WeightsError: a configuration is not that of a MobileNetV1.
    """
    source = f"{container.path} (Hugging Face)"
    prefix = PREFIX if f"{PREFIX}conv_stem.convolution.weight" in container.tensors else ""
    names = dict(zip(huggingface_names(prefix), own_names(), strict=True))
    tensors = {names.get(name, name): tensor for name, tensor in container.tensors.items()}
    architecture = infer_architecture(source, tensors)
    try:
        architecture.update(_from_config(config))
        preprocessing = _read_preprocessing(config, processor)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{source}: config.json is not a MobileNetV1's: {error}") from error
    return Checkpoint(
        source,
        tensors,
        architecture,
        class_names=_class_names(config, architecture["num_classes"]),
        preprocessing=preprocessing,
        names={own: theirs for theirs, own in names.items()},
    )


def _from_config(config: dict[str, Any]) -> dict[str, Any]:
    dropout = float(config.get("classifier_dropout_prob", 1e-3))
    found: dict[str, Any] = {
        "padding": "same" if config.get("tf_padding", True) else "torch",
        "bn_eps": float(config.get("layer_norm_eps", 1e-3)),
        "bn_momentum": 0.0003,
        "activation": config.get("hidden_act", "relu6"),
        "dropout": round(1 - dropout, 6) if dropout > DROPPED_KEEP_PROBABILITY else dropout,
    }
    if "depth_multiplier" in config:
        found["alpha"] = float(config["depth_multiplier"])
    return found


def _class_names(config: dict[str, Any], count: int) -> tuple[str, ...] | None:
    labels = config.get("id2label")
    if isinstance(labels, dict) and {str(number) for number in range(count)} == labels.keys():
        names = tuple(str(labels[str(number)]) for number in range(count))
        return None if names == tuple(f"LABEL_{number}" for number in range(count)) else names
    if count == 1001:
        names = imagenet_class_names(1000) or ()
        return ("background", *names) if names else None
    return imagenet_class_names(count)


def _read_preprocessing(config: dict[str, Any], processor: dict[str, Any]) -> Preprocessing:
    resolution = int(config.get("image_size", 224))
    if not processor:
        return Preprocessing(resolution, int(resolution / 0.875))
    size, crop = processor.get("size", {}), processor.get("crop_size", {})
    edge = size.get("shortest_edge") if isinstance(size, dict) else size
    height = crop.get("height", resolution) if isinstance(crop, dict) else crop
    return Preprocessing(
        int(height),
        None if edge is None else int(edge),
        INTERPOLATIONS.get(processor.get("resample", 2), "bilinear"),
        tuple(processor.get("image_mean", (0.5, 0.5, 0.5))),
        tuple(processor.get("image_std", (0.5, 0.5, 0.5))),
    )


def export_huggingface(
    model: MobileNet, state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Return tensors under Hugging Face's names, and the content of each JSON file.

    Raises:
        WeightsError: transformers has no such network.
    """
    config = model.config
    supported = {"depth_multiplier": 1, "output_stride": 32, "features_only": False}
    for argument, only in supported.items():
        if config[argument] != only:
            raise WeightsError(
                f"Hugging Face has MobileNetV1 with {argument} = {only} only, "
                f"found {config[argument]}"
            )
    warn_of_padding(config["padding"])
    headless = not config["num_classes"]
    names = dict(zip(own_names(), huggingface_names("" if headless else PREFIX), strict=True))
    tensors = {names[name]: value for name, value in state.items()}
    preprocessing = model.preprocessing or Preprocessing(224, 256)
    return tensors, {
        "config.json": _to_config(model, preprocessing.resolution),
        "preprocessor_config.json": _to_processor(preprocessing),
    }


def _to_config(model: MobileNet, resolution: int) -> dict[str, Any]:
    config, count = model.config, model.config["num_classes"]
    names = model.class_names or tuple(f"LABEL_{number}" for number in range(count))
    kind = "MobileNetV1ForImageClassification" if count else "MobileNetV1Model"
    return {
        "architectures": [kind],
        "model_type": MODEL_TYPE,
        "num_channels": config["in_channels"],
        "image_size": resolution,
        "depth_multiplier": config["alpha"],
        "min_depth": 1,
        "hidden_act": config["activation"],
        "tf_padding": config["padding"] != "torch",
        "classifier_dropout_prob": config["dropout"],
        "layer_norm_eps": config["bn_eps"],
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _to_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    numbers = {name: number for number, name in INTERPOLATIONS.items()}
    size = preprocessing.resolution
    return {
        "image_processor_type": "MobileNetV1ImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.resize or size},
        "resample": numbers[preprocessing.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
