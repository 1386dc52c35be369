"""relu6(bn(depthwise_conv(x))) by stock PyTorch and by our kernels, to be timed layer by layer."""

import torch.nn.functional as F
from layers import Layer
from torch import Tensor

from mobilenet_ext.functional import depthwise_conv_bn_relu

EPS, MOMENTUM = 1e-3, 0.01


def stock(x: Tensor, weight: Tensor, *vectors: Tensor, layer: Layer, training: bool) -> Tensor:
    """Return relu6(bn(depthwise_conv(x))) from stock ops."""
    bn_weight, bn_bias, running_mean, running_var = vectors
    left, right, top, bottom = layer.padding
    even = left == right == top == bottom
    x = x if even else F.pad(x, (left, right, top, bottom))
    raw = F.conv2d(x, weight, None, layer.stride, left if even else 0, groups=x.shape[1])
    stats = (running_mean, running_var)
    return F.relu6(F.batch_norm(raw, *stats, bn_weight, bn_bias, training, MOMENTUM, EPS))


def fused(x: Tensor, *vectors: Tensor, layer: Layer, training: bool) -> Tensor:
    """Return the same from our kernels."""
    return depthwise_conv_bn_relu(
        x,
        *vectors,
        stride=layer.stride,
        padding=layer.padding,
        training=training,
        momentum=MOMENTUM,
        eps=EPS,
    )
