"""MobileNetV1 in float64 from a state dict, written out: padding, strides and dilations by hand."""

from typing import Any

import oracle
import torch.nn.functional as F
from torch import Tensor

from mobilenet_ext.functional import BatchNorm

StateDict = dict[str, Tensor]

# Stride of each block, for each output_stride; what a lost stride leaves behind is a dilation.
STRIDES = {
    32: [(1, 1), (2, 1), (1, 1), (2, 1), (1, 1), (2, 1), *[(1, 1)] * 5, (2, 1), (1, 1)],
    16: [(1, 1), (2, 1), (1, 1), (2, 1), (1, 1), (2, 1), *[(1, 1)] * 5, (1, 1), (1, 2)],
    8: [(1, 1), (2, 1), (1, 1), (2, 1), (1, 1), (1, 1), *[(1, 2)] * 5, (1, 2), (1, 4)],
}


def stride_2_pads(size: int, convention: str, stem: bool) -> tuple[int, int]:
    """Zeros before and after an axis of `size` pixels, for a 3x3 convolution of stride 2."""
    if convention == "torch":
        return 1, 1
    if convention == "keras" and not stem:
        return 0, 1
    # TensorFlow's SAME: ceil(size / 2) outputs, the odd pixel of padding at the end.
    total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
    return total // 2, total - total // 2


def pad(x: Tensor, stride: int, dilation: int, convention: str, stem: bool = False) -> Tensor:
    if stride == 1:
        return F.pad(x, (dilation,) * 4)
    height, width = x.shape[2:]
    columns, rows = (stride_2_pads(size, convention, stem) for size in (width, height))
    return F.pad(x, (*columns, *rows))


def batch_norm(state: StateDict, name: str, training: bool, config: dict[str, Any]) -> BatchNorm:
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = (state[f"{name}.bn.{part}"] for part in names)
    return BatchNorm(*vectors, training, eps=config["bn_eps"], activation=config["activation"])


def forward_features(
    state: StateDict, x: Tensor, config: dict[str, Any], *, training: bool = False
) -> Tensor:
    """The last activated map."""

    def conv_bn_act(x: Tensor, name: str, **options: Any) -> Tensor:
        raw = F.conv2d(x, state[f"{name}.conv.weight"].double(), **options)
        return oracle.batch_norm_act(raw, batch_norm(state, name, training, config))

    convention = config["padding"]
    x = conv_bn_act(pad(x.double(), 2, 1, convention, stem=True), "stem", stride=2)
    for i, (stride, dilation) in enumerate(STRIDES[config["output_stride"]]):
        padded = pad(x, stride, dilation, convention)
        options = {"stride": stride, "dilation": dilation, "groups": x.shape[1]}
        x = conv_bn_act(padded, f"blocks.{i}.depthwise", **options)
        x = conv_bn_act(x, f"blocks.{i}.pointwise")
    return x


def forward(
    state: StateDict, x: Tensor, config: dict[str, Any], *, training: bool = False
) -> Tensor:
    """The logits, without dropout."""
    pooled = forward_features(state, x, config, training=training).mean((2, 3))
    return F.linear(pooled, state["classifier.weight"].double(), state["classifier.bias"].double())
