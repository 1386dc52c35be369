"""MobileNetV1 from stock torch.nn, as Keras Applications builds it: the baseline and the oracle.

3x3 stem of stride 2, thirteen depthwise-separable blocks, global average pooling, dropout, linear
classifier. Raw logits come out; softmax is the loss's. Parameters are named stem.{conv,bn},
blocks.{0..12}.{depthwise,pointwise}.{conv,bn} and classifier.

Source: Howard et al. 2017, arXiv:1704.04861; keras.applications.MobileNet; TF-slim mobilenet_v1
(output_stride).
"""

from __future__ import annotations

from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from .checks import is_int, require
from .geometry import Padding
from .layers import ConvBNReLU, SeparableBlock
from .preprocessing import Described

if TYPE_CHECKING:
    from .inference import FrozenMobileNet

__all__ = ["MobileNet"]

STEM_FILTERS = 32
BLOCKS = (  # stride and filters
    (1, 64),
    (2, 128),
    (1, 128),
    (2, 256),
    (1, 256),
    (2, 512),
    *((1, 512),) * 5,
    (2, 1024),
    (1, 1024),
)
FEATURE_BLOCKS = (0, 2, 4, 10, 12)  # the last ones at strides 2, 4, 8, 16, 32
PADDINGS = ("keras", "same", "torch")


class MobileNet(Described, nn.Module):
    """MobileNetV1 of any width and dense-prediction stride, for images of 31 pixels and more.

    Args:
        num_classes: size of the output; 0 returns pooled features.
        alpha: width multiplier; a layer has int(filters * alpha) channels.
        in_channels: of the input.
        depth_multiplier: depthwise outputs per input channel.
        dropout: probability before the classifier.
        activation: "relu6" (Keras, TF-slim, timm) or "relu" (the paper).
        padding: of convolutions with stride 2; pretrained weights work with theirs only.
            "keras": (0, 1), (0, 1), the stem SAME; "same": TensorFlow's SAME, by input size
            (TF-slim, Hugging Face); "torch": 1 on every side (timm).
        bn_eps: added to BatchNorm's variance.
        bn_momentum: weight of a batch in the running statistics; None averages over all batches.
        output_stride: 8, 16 or 32; below 32 later strides become dilations.
        features_only: return the maps of blocks 0, 2, 4, 10 and 12, at strides 2 to 32 (or
            output_stride), and have no classifier.

    Shape: [N, in_channels, H, W] to [N, num_classes]; odd sizes, too. With "keras" padding H and W
        are at least output_stride - 1, as the last map would be empty; with the others at least 1.

    Raises:
        ValueError: an argument is out of range.

    Kernels start as in Keras (Glorot uniform), biases at 0, BatchNorm at identity.
    """

    stem_type = ConvBNReLU
    block_type = SeparableBlock

    def __init__(
        self,
        num_classes: int = 1000,
        alpha: float = 1.0,
        *,
        in_channels: int = 3,
        depth_multiplier: int = 1,
        dropout: float = 1e-3,
        activation: str = "relu6",
        padding: str = "keras",
        bn_eps: float = 1e-3,
        bn_momentum: float | None = 0.01,
        output_stride: int = 32,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "num_classes": num_classes,
            "alpha": alpha,
            "in_channels": in_channels,
            "depth_multiplier": depth_multiplier,
            "dropout": dropout,
            "activation": activation,
            "padding": padding,
            "bn_eps": bn_eps,
            "bn_momentum": bn_momentum,
            "output_stride": output_stride,
            "features_only": features_only,
        }
        _check_config(type(self).__name__, **self.config)
        self.features_only = features_only
        options: dict[str, Any] = {
            "activation": activation,
            "eps": bn_eps,
            "momentum": bn_momentum,
        }
        channels = int(STEM_FILTERS * alpha)
        stem_padding: Padding = 1 if padding == "torch" else "same"
        self.stem = self.stem_type(
            in_channels, channels, 3, stride=2, padding=stem_padding, **options
        )
        self.blocks = nn.ModuleList()
        for (_, filters), (stride, dilation) in zip(BLOCKS, dilate(output_stride), strict=True):
            block = self.block_type(
                channels,
                int(filters * alpha),
                stride=stride,
                padding=depthwise_padding(padding, stride, dilation),
                dilation=dilation,
                depth_multiplier=depth_multiplier,
                **options,
            )
            self.blocks.append(block)
            channels = int(filters * alpha)
        self.num_features = channels
        self.dropout = nn.Dropout(dropout)
        self.classifier: nn.Module = nn.Identity()
        initialise(self)
        if not features_only:
            self.reset_classifier(num_classes)

    def forward(self, input: Tensor) -> Tensor | list[Tensor]:
        """Logits [N, num_classes], pooled features without a classifier, or the feature maps."""
        features = self.forward_features(input)
        if isinstance(features, list):
            return features
        return cast("Tensor", self.classifier(self.dropout(features.mean((2, 3)))))

    def forward_features(self, input: Tensor) -> Tensor | list[Tensor]:
        """Last activated map [N, num_features, H', W'], or the list of maps if features_only."""
        self.check_input(input)
        maps = []
        x = self.stem(input)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in FEATURE_BLOCKS:
                maps.append(x)
        return maps if self.features_only else x

    def check_input(self, input: Tensor) -> None:
        """Raise ValueError unless the input is [N, in_channels, H, W]."""
        channels = self.stem.conv.in_channels
        require(
            input.dim() == 4 and input.shape[1] == channels,
            f"{type(self).__name__}: input",
            f"[N, C, H, W] with C = {channels}",
            list(input.shape),
        )

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one; 0 for none.

        Raises:
            ValueError: num_classes is negative or no int, or this network returns feature maps.
        """
        name = f"{type(self).__name__}.reset_classifier"
        require(not self.features_only, f"{name}: features_only", "False", self.features_only)
        if is_int(num_classes) and not isinstance(num_classes, bool):
            num_classes = int(num_classes)  # numpy's, too
        valid = _is_count(num_classes, 0)
        require(valid, f"{name}: num_classes", "an int, at least 0", num_classes)
        self.config["num_classes"] = num_classes
        self.class_names = None
        self.classifier = nn.Identity()
        if num_classes:
            like = self.stem.conv.weight
            classifier = nn.Linear(
                self.num_features, num_classes, device=like.device, dtype=like.dtype
            )
            _glorot_uniform(classifier.weight, self.num_features, num_classes)
            nn.init.zeros_(classifier.bias)
            self.classifier = classifier

    def freeze(self, *, cuda_graph: bool = False) -> FrozenMobileNet:
        """Return an inference-only copy with BatchNorm folded into the convolutions.

        Args:
            cuda_graph: replay a CUDA graph for each shape of the input, see FrozenMobileNet.

        Raises:
            ValueError: a layer was replaced or edited, or has no running statistics; or with
                `cuda_graph` the model is not on a CUDA device.
        """
        from .inference import FrozenMobileNet  # it needs this class

        return FrozenMobileNet(self, cuda_graph=cuda_graph)


def dilate(output_stride: int) -> list[tuple[int, int]]:
    """Stride and dilation of each block: past output_stride a stride dilates what follows it."""
    reached, rate, result = 2, 1, []
    for stride, _ in BLOCKS:
        if reached == output_stride:
            result.append((1, rate))
            rate *= stride
        else:
            result.append((stride, 1))
            reached *= stride
    return result


def depthwise_padding(padding: str, stride: int, dilation: int) -> Padding:
    """Padding of a 3x3 depthwise convolution; with stride 1 all conventions agree."""
    if stride == 1:
        return dilation
    conventions: dict[str, Padding] = {"keras": (0, 1, 0, 1), "same": "same", "torch": 1}
    return conventions[padding]


def initialise(model: MobileNet) -> None:
    """Draw all convolution kernels as Keras does."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            taps = module.weight[0, 0].numel()
            outputs = module.out_channels
            if module.groups > 1:  # Keras counts a depthwise kernel as [K, K, C, multiplier]
                outputs //= module.groups
            _glorot_uniform(module.weight, module.in_channels * taps, outputs * taps)


def _glorot_uniform(weight: Tensor, fan_in: int, fan_out: int) -> None:
    """Uniform within sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(weight, -bound, bound)


def _is_count(value: object, least: int) -> bool:
    """Tell whether a value is an int, and no bool, that is large enough."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_config(name: str, **config: Any) -> None:
    """Raise ValueError for the first constructor argument out of range."""

    def check(argument: str, valid: bool, expected: str) -> None:
        require(valid, f"{name}: {argument}", expected, config[argument])

    for argument, least in (("num_classes", 0), ("in_channels", 1), ("depth_multiplier", 1)):
        value = config[argument]
        check(argument, _is_count(value, least), f"an int, at least {least}")
    alpha, momentum = config["alpha"], config["bn_momentum"]
    wide_enough = isfinite(alpha) and int(STEM_FILTERS * alpha) >= 1
    check("alpha", wide_enough, f"finite and at least 1/{STEM_FILTERS}")
    check("dropout", 0 <= config["dropout"] < 1, "in [0, 1)")
    check("activation", config["activation"] in ("relu", "relu6"), "'relu' or 'relu6'")
    check("padding", config["padding"] in PADDINGS, f"one of {PADDINGS}")
    check("bn_eps", config["bn_eps"] > 0, "positive")
    check("bn_momentum", momentum is None or 0 <= momentum <= 1, "None or in [0, 1]")
    check("output_stride", config["output_stride"] in (8, 16, 32), "8, 16 or 32")
