"""The names that tensors have here, in Hugging Face's MobileNetV1 and in timm's.

All three have the same 27 layers of convolution and BatchNorm in the same order, and a classifier;
the other two have no padding like Keras's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from ..model import BLOCKS

NORM_FIELDS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
CLASSIFIER = ("classifier.weight", "classifier.bias")
TIMM_STAGES = (1, 2, 2, 6, 2)  # blocks in each
LAYERS = (
    "stem",
    *(f"blocks.{n}.{part}" for n in range(len(BLOCKS)) for part in ("depthwise", "pointwise")),
)


def own_names() -> list[str]:
    """Return this package's names of all tensors, in the state dict's order."""
    return _flatten((f"{layer}.conv", f"{layer}.bn") for layer in LAYERS)


def huggingface_names(prefix: str = "mobilenet_v1.") -> list[str]:
    """Return Hugging Face's names for the tensors of `own_names`."""
    layers = ["conv_stem", *(f"layer.{index}" for index in range(len(LAYERS) - 1))]
    return _flatten(
        (f"{prefix}{layer}.convolution", f"{prefix}{layer}.normalization") for layer in layers
    )


def timm_names() -> list[str]:
    """Return timm's names for the tensors of `own_names`."""
    pairs = [("conv_stem", "bn1")]
    for stage, count in enumerate(TIMM_STAGES):
        for index in range(count):
            block = f"blocks.{stage}.{index}"
            pairs += [(f"{block}.conv_dw", f"{block}.bn1"), (f"{block}.conv_pw", f"{block}.bn2")]
    return _flatten(pairs)


def _flatten(pairs: Iterable[tuple[str, str]]) -> list[str]:
    names = []
    for conv, norm in pairs:
        names += [f"{conv}.weight", *(f"{norm}.{field}" for field in NORM_FIELDS)]
    return [*names, *CLASSIFIER]


def warn_of_padding(padding: str) -> None:
    """Say what becomes of Keras's padding, which only Keras and this package have."""
    if padding == "keras":
        warnings.warn(
            "Keras's padding becomes TensorFlow's SAME, which gives the same results for sizes "
            "that are multiples of 32, and others for other sizes",
            stacklevel=4,
        )
