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
from .batch_norm import BatchNorm, Statistics, update_running
from .block import run_block
from .frozen_cache import FrozenCache
from .model import MobileNet
from .structure import Structure

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
    _structure: Structure | None = None

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
        updates: list[tuple[BatchNorm, Statistics]] = []
        autocast = dispatch.is_autocast_enabled(input.device)
        for block in cast("list[nn.SeparableBlock]", self.blocks):
            depthwise, pointwise = block.depthwise, block.pointwise
            between = nn.read_batch_norm(depthwise.bn, depthwise.activation)
            weights = (depthwise.conv.weight, pointwise.conv.weight)
            if autocast:
                weights = (dispatch.autocast(weights[0]), dispatch.autocast(weights[1]))
            raw, *moments = run_block(
                raw, weights, depthwise.geometry(raw.tensor), bn, between, pointwise.bn.training
            )
            updates += zip((between, bn), moments, strict=True)
            bn = nn.read_batch_norm(pointwise.bn, pointwise.activation)
        update_running(updates)
        return nn.normalise(raw, bn)

    def _can_chain(self, input: Tensor) -> bool:
        """Tell whether every layer is what it was built as and nobody listens inside."""
        if nn.is_exporting() or not dispatch.device_has_kernels(input.device):
            return False
        structure = self._current_structure()
        if type(self.stem) is not nn.ConvBNReLU or not all(map(nn.is_intact, self.blocks)):
            return False
        convolutions = (x for x in structure.modules if isinstance(x, layers.ConvBNReLU))
        return not structure.has_hooks() and all(map(nn.is_plain, convolutions))

    def _current_structure(self) -> Structure:
        """Return the modules that this network is made of."""
        if self._structure is None or not self._structure.is_current():
            self._structure = Structure(self)
        return self._structure

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
        structure = self._current_structure()
        if self._frozen is None or self._frozen.structure is not structure:
            self._frozen = FrozenCache(self, structure)
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
        replica._frozen = replica._structure = None
        return replica

    def __getstate__(self) -> dict[str, Any]:
        """Leave the frozen copy out of pickles and deep copies."""
        return {**self.__dict__, "_frozen": None, "_structure": None}
