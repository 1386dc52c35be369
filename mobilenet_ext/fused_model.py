"""FusedMobileNet: the same network as MobileNet, run as a chain of fused units.

Training writes raw convolution outputs only:

    stem conv -> raw -> [BN, act, depthwise, BN, act, pointwise] -> raw -> ... -> BN, act -> head

All brackets together are one op (chain.py). Inference takes a FrozenMobileNet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from . import _C, dispatch, layers, nn, stem
from .batch_norm import update_running
from .chain import run_chain
from .frozen_cache import FrozenCache
from .model import MobileNet
from .structure import Structure
from .training_chain import TrainingChain

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
      changed attributes (bn.eps, conv.stride, a module's forward, this forward_features) are not
      noticed: call eval() again after them, or use freeze().
    - a hook on a block, the stem or any layer in it, or a forward of its own, a replaced or edited
      layer (see nn.py), features_only, or a device without kernels: module by module, so that
      hooks fire. Each block without hooks inside still runs fused. Hooks on the network itself
      change nothing.
    - torch.export and torch.jit.trace: stock ops only, so that the result runs anywhere.
    """

    stem_type = nn.ConvBNReLU
    block_type = nn.SeparableBlock
    _frozen: FrozenCache | None = None
    _structure: Structure | None = None

    def forward(self, input: Tensor) -> Tensor | list[Tensor]:
        """Logits [N, num_classes], pooled features without a classifier, or the feature maps."""
        frozen = self._frozen_for(input)
        if frozen is None:
            return super().forward(input)
        return frozen.forward(input)  # it is no part of this network, and has no hooks

    def forward_features(self, input: Tensor) -> Tensor | list[Tensor]:
        """Last activated map [N, num_features, H', W'], or the list of maps if features_only."""
        self.check_input(input)
        input = input.contiguous(memory_format=torch.channels_last)
        chain = None if self.features_only else self._chain_for(input)
        return super().forward_features(input) if chain is None else self._run(chain, input)

    def _run(self, chain: TrainingChain, input: Tensor) -> Tensor:
        """Run stem and blocks; only raw convolution outputs pass from one to the next."""
        first = stem.start(chain.layers[0], input)
        run, norms, _ = chain.start_batch(first.shape[2:], input.device)
        raw, moments = run_chain(first, run)
        update_running(norms, (statistics for both in moments for statistics in both))
        return nn.normalise(raw, norms[-1])

    def _chain_for(self, input: Tensor) -> TrainingChain | None:
        """Return the layers in order, if nobody has changed or listens to one of them."""
        if nn.is_exporting() or not dispatch.device_has_kernels(input.device):
            return None
        structure = self._current_structure()
        chain = structure.chain
        if chain is None or structure.has_hooks() or not chain.may_run():
            return None
        return chain

    def _current_structure(self) -> Structure:
        """Return the modules that this network is made of."""
        if self._structure is None or not self._structure.is_current():
            self._structure = Structure(self)
            self._structure.chain = self._collect_chain()
        return self._structure

    def _collect_chain(self) -> TrainingChain | None:
        """Return the layers in order, if all are what they were built as."""
        if type(self.stem) is not nn.ConvBNReLU or not all(map(nn.is_intact, self.blocks)):
            return None
        chain: list[layers.ConvBNReLU] = [self.stem]
        blocks = cast("list[nn.SeparableBlock]", list(self.blocks))
        for block in blocks:
            chain += (block.depthwise, block.pointwise)
        return TrainingChain(chain, blocks) if all(map(nn.is_plain, chain)) else None

    def _frozen_for(self, input: Tensor) -> FrozenMobileNet | None:
        """Return the up-to-date frozen copy where it may stand in for this network."""
        if (
            self.training
            or torch.compiler.is_compiling()
            or type(input) is not Tensor
            or type(self).forward_features is not FusedMobileNet.forward_features
            or not _C.is_plain_inference()
            or (not input.is_cpu and dispatch.is_autocast_enabled(input.device))
        ):
            return None
        cache = self._frozen  # read once: another thread may forget it
        if cache is None or not cache.is_current():
            cache = self._frozen = self._new_cache()
        return None if cache is None else cache.frozen

    def _new_cache(self) -> FrozenCache | None:
        """Freeze this network, if the copy does what it does."""
        structure = self._current_structure()
        if structure.has_hooks() or structure.is_training():
            return None
        if structure.has_own_forward() or "forward_features" in vars(self):
            return None
        return FrozenCache(self, structure)

    def train(self, mode: bool = True) -> Self:
        """Set the mode and forget what was read of the weights."""
        self._forget()
        return super().train(mode)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load and forget what was read of the weights."""
        self._forget()
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._forget()
        return super()._apply(fn, recurse)

    def _forget(self) -> None:
        """Let go of the frozen copy, and of the tensors that training has read."""
        self._frozen = None
        structure = self._structure
        if structure is not None and structure.chain is not None:
            structure.chain.forget()

    def _replicate_for_data_parallel(self) -> Self:
        replica = super()._replicate_for_data_parallel()
        replica._frozen = replica._structure = None
        return replica

    def __getstate__(self) -> dict[str, Any]:
        """Leave the frozen copy out of pickles and deep copies."""
        return {**self.__dict__, "_frozen": None, "_structure": None}
