"""The ops in stock PyTorch: the specification of the kernels.

Tensors are [N, C, H, W], vectors [C]. Convolutions run in the input's dtype, everything about
BatchNorm in float32 (float64 for float64).
"""

from .batch_norm import (
    batch_norm_affine,
    batch_norm_gradient_map,
    batch_norm_statistics,
    scale_shift_act,
    scale_shift_act_backward,
    scale_shift_act_backward_reduce,
)
from .blocks import separable_convs, separable_convs_backward
from .conv import (
    depthwise_conv,
    depthwise_conv_backward,
    image_conv,
    image_conv_backward,
    image_patches,
    pointwise_conv,
    pointwise_conv_backward,
)
from .network import mobilenet

__all__ = [
    "batch_norm_affine",
    "batch_norm_gradient_map",
    "batch_norm_statistics",
    "depthwise_conv",
    "depthwise_conv_backward",
    "image_conv",
    "image_conv_backward",
    "image_patches",
    "mobilenet",
    "pointwise_conv",
    "pointwise_conv_backward",
    "scale_shift_act",
    "scale_shift_act_backward",
    "scale_shift_act_backward_reduce",
    "separable_convs",
    "separable_convs_backward",
]
