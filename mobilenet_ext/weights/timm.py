"""timm's mobilenetv1_100 and mobilenetv1_125: tensors and config.json, both ways."""

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
from .naming import own_names, timm_names, warn_of_padding

MODELS = {1.0: "mobilenetv1_100", 1.25: "mobilenetv1_125"}
RESOLUTION = 224
CROP = 0.875


def is_timm(container: Container) -> bool:
    """Tell whether a container has timm's names of tensors."""
    return "conv_stem.weight" in container.tensors


def read_timm(container: Container, config: dict[str, Any]) -> Checkpoint:
    """Read tensors, and config.json where it is beside them.

    Raises:
        WeightsError: the configuration or the network is not a MobileNetV1's.
    """
    source = f"{container.path} (timm)"
    if "conv_head.weight" in container.tensors:
        raise WeightsError(
            f"{source}: unexpected: conv_head.weight; a head convolution, as mobilenetv1_100h has "
            "it, is not part of MobileNetV1"
        )
    names = dict(zip(timm_names(), own_names(), strict=True))
    tensors = {names.get(name, name): tensor for name, tensor in container.tensors.items()}
    architecture = infer_architecture(source, tensors)
    try:
        arguments = config.get("model_args") or {}
        symmetric = arguments.get("pad_type", "") != "same"
        architecture |= {
            "padding": "torch" if symmetric else "same",
            "bn_eps": float(arguments.get("bn_eps", 1e-5)),
            "bn_momentum": float(arguments.get("bn_momentum", 0.1)),
            "dropout": float(arguments.get("drop_rate", 0.0)),
            "activation": arguments.get("act_layer", "relu6"),
            "output_stride": int(arguments.get("output_stride", 32)),
        }
        preprocessing = _read_preprocessing(config.get("pretrained_cfg") or config)
        class_names = _class_names(config, architecture["num_classes"])
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise WeightsError(f"{source}: config.json is not a MobileNetV1's: {error}") from error
    return Checkpoint(
        source,
        tensors,
        architecture,
        class_names=class_names,
        preprocessing=preprocessing,
        names={own: theirs for theirs, own in names.items()},
    )


def _class_names(config: dict[str, Any], count: int) -> tuple[str, ...] | None:
    names = config.get("label_names")
    if isinstance(names, list) and len(names) == count:
        return tuple(map(str, names))
    return imagenet_class_names(count)


def _read_preprocessing(config: dict[str, Any]) -> Preprocessing:
    resolution = int(config.get("input_size", (3, RESOLUTION, RESOLUTION))[-1])
    return Preprocessing(
        resolution,
        int(resolution / float(config.get("crop_pct", CROP))),
        config.get("interpolation", "bicubic"),
        tuple(config.get("mean", (0.5, 0.5, 0.5))),
        tuple(config.get("std", (0.5, 0.5, 0.5))),
    )


def export_timm(
    model: MobileNet, state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Return tensors under timm's names, and the content of config.json.

    Raises:
        WeightsError: timm has no such network.
    """
    config = model.config
    if config["alpha"] not in MODELS:
        raise WeightsError(
            f"timm has MobileNetV1 with alpha in {list(MODELS)} only, found {config['alpha']}"
        )
    for argument, only in (("depth_multiplier", 1), ("features_only", False)):
        if config[argument] != only:
            raise WeightsError(
                f"timm has MobileNetV1 with {argument} = {only} only, found {config[argument]}"
            )
    warn_of_padding(config["padding"])
    names = dict(zip(own_names(), timm_names(), strict=True))
    tensors = {names[name]: value for name, value in state.items()}
    arguments: dict[str, Any] = {"bn_eps": config["bn_eps"], "drop_rate": config["dropout"]}
    optional = {
        "bn_momentum": (config["bn_momentum"], None),
        "act_layer": (config["activation"], "relu6"),
        "pad_type": ("" if config["padding"] == "torch" else "same", ""),
        "output_stride": (config["output_stride"], 32),
        "in_chans": (config["in_channels"], 3),
    }
    arguments |= {name: value for name, (value, usual) in optional.items() if value != usual}
    return tensors, {"config.json": _to_config(model, arguments)}


def _to_config(model: MobileNet, arguments: dict[str, Any]) -> dict[str, Any]:
    preprocessing = model.preprocessing or Preprocessing(RESOLUTION, int(RESOLUTION / CROP))
    size = preprocessing.resolution
    config: dict[str, Any] = {
        "architecture": MODELS[model.config["alpha"]],
        "num_classes": model.config["num_classes"],
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [model.config["in_channels"], size, size],
            "interpolation": preprocessing.interpolation,
            "crop_pct": size / (preprocessing.resize or size),
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": model.config["num_classes"],
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }
    if model.class_names is not None:
        config["label_names"] = list(model.class_names)
    return config
