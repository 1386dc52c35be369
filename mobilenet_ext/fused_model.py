"""FusedMobileNet: the same network as MobileNet, run as a chain of fused units.

Training writes raw convolution outputs only:

    stem conv -> raw -> [BN, act, depthwise, BN, act, pointwise] -> raw -> ... -> BN, act -> head

Each bracket is one functional.bn_relu_separable_conv. Inference takes a FrozenMobileNet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from . import dispatch, functional, layers, nn
from .frozen_cache import FrozenCache
from .model import MobileNet

if TYPE_CHECKING:
    from typing_extensions import Self

    from .inference import FrozenMobileNet

__all__ = ["FusedMobileNet"]


class FusedMobileNet(MobileNet):
    """MobileNetV1 on fused kernels: a drop-in for MobileNet, with its arguments and state dict.

    There are four ways through it, all with MobileNet's results up to rounding:

    - training, or gradients, or torch.compile, or autocast: the chain of fused units. The input is
      converted to channels_last once. A BatchNorm in eval mode is frozen.
    - eval() without gradients: a cached FrozenMobileNet, made anew whenever a parameter or buffer
      has changed. It costs the memory of a second set of weights. Writes through `.data` and
      changed attributes (bn.eps) are not noticed: call eval() again after them, or use freeze().
    - a hook on a block, the stem or any layer in it, a replaced layer (see nn.py), features_only,
      or a device without kernels: module by module, so that hooks fire. Each block without hooks
      inside still runs fused. Hooks on the network itself change nothing.
    - torch.export and torch.jit.trace: stock ops only, so that the result runs anywhere.
    """

    stem_type = nn.ConvBNReLU
    block_type = nn.SeparableBlock
    _frozen: FrozenCache | None = None

    def forward(self, input: Tensor) -> Tensor | list[Tensor]:
        """Logits [N, num_classes], pooled features without a classifier, or the feature maps."""
        frozen = self._frozen_for(input)
        return super().forward(input) if frozen is None else frozen(input)

    def forward_features(self, input: Tensor) -> Tensor | list[Tensor]:
        """Last activated map [N, num_features, H', W'], or the list of maps if features_only."""
        self.check_input(input)
        input = input.contiguous(memory_format=torch.channels_last)
        if self.features_only or not self._can_chain(input):
            return super().forward_features(input)
        return self._chain(input)

    def _chain(self, input: Tensor) -> Tensor:
        """Run the units; only raw convolution outputs pass from one to the next."""
        output = self.stem.conv(self.stem.pad(input))
        raw = functional.RawMap(output.contiguous(memory_format=torch.channels_last))
        bn = nn.read_batch_norm(self.stem.bn, self.stem.activation)
        for block in cast("list[nn.SeparableBlock]", self.blocks):
            depthwise, pointwise = block.depthwise, block.pointwise
            raw = functional.bn_relu_separable_conv(
                raw,
                bn,
                depthwise.conv.weight,
                nn.read_batch_norm(depthwise.bn, depthwise.activation),
                pointwise.conv.weight,
                stride=depthwise.conv.stride[0],
                padding=depthwise.padding,
                dilation=depthwise.conv.dilation[0],
                statistics=pointwise.bn.training,
            )
            bn = nn.read_batch_norm(pointwise.bn, pointwise.activation)
        return nn.normalise(raw, bn)

    def _can_chain(self, input: Tensor) -> bool:
        """Tell whether every layer is what it was built as and nobody listens inside."""
        if type(self.stem) is not nn.ConvBNReLU or not all(map(nn.is_intact, self.blocks)):
            return False
        for module in self.modules():
            if module is not self and nn.has_hooks(module):
                return False
            if isinstance(module, layers.ConvBNReLU) and not nn.can_fuse(module, input):
                return False
        return True

    def _frozen_for(self, input: Tensor) -> FrozenMobileNet | None:
        """Return the up-to-date frozen copy where it may stand in for this network."""
        if (
            self.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or nn.is_exporting()
            or type(self).forward_features is not FusedMobileNet.forward_features
            or type(input) is not Tensor
            or dispatch.is_autocast_enabled(input.device)
        ):
            return None
        if self._frozen is None or not self._frozen.has_same_modules():
            self._frozen = FrozenCache(self)
        return self._frozen.get(self)

    def train(self, mode: bool = True) -> Self:
        """Set the mode and forget the frozen copy."""
        self._frozen = None
        return super().train(mode)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load and forget the frozen copy."""
        self._frozen = None
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._frozen = None
        return super()._apply(fn, recurse)

    def _replicate_for_data_parallel(self) -> Self:
        replica = super()._replicate_for_data_parallel()
        replica._frozen = None
        return replica

    def __getstate__(self) -> dict[str, Any]:
        """Leave the frozen copy out of pickles and deep copies."""
        return {**self.__dict__, "_frozen": None}
