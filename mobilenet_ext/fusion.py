"""fuse(model) and unfuse(model): fused kernels in any torch.nn network, and back.

Modules stay where they are and keep their parameters; only their classes change, so state dicts and
optimizers do not notice. In a chain depthwise conv -> BatchNorm -> ReLU the convolution computes
all three and the others pass its result on; elsewhere BatchNorm computes itself and the ReLU.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, fx, nn

from . import dispatch, functional, layers
from . import nn as fused_layers
from .fused_model import FusedMobileNet
from .geometry import Padding
from .model import MobileNet

__all__ = ["fuse", "unfuse"]

Model = TypeVar("Model", bound=nn.Module)

ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}
OWN: dict[type[nn.Module], type[nn.Module]] = {  # of the same parts, with another forward
    MobileNet: FusedMobileNet,
    layers.ConvBNReLU: fused_layers.ConvBNReLU,
    layers.DepthwiseConvBNReLU: fused_layers.DepthwiseConvBNReLU,
    layers.PointwiseConvBNReLU: fused_layers.PointwiseConvBNReLU,
    layers.SeparableBlock: fused_layers.SeparableBlock,
}


class Group:
    """A chain of a module's children: BatchNorm, with a depthwise convolution, a ReLU, or both."""

    def __init__(self, parent: nn.Module, conv: str | None, bn: str, act: str | None) -> None:
        self.parent = parent
        self.names = {"conv": conv, "bn": bn, "act": act}
        self.members: dict[str, Any] = {
            role: getattr(parent, name) for role, name in self.names.items() if name is not None
        }
        self.activation = ACTIVATIONS[type(self.members["act"])] if act is not None else None

    def is_active(self, caller: nn.Module, input: Tensor) -> bool:
        """Tell, alike for every member, whether the first one computes for all."""
        if not any(caller is member for member in self.members.values()):
            return False  # a replica of nn.DataParallel: the members have other weights
        for role, module in self.members.items():
            if id(self.parent._modules.get(self.names[role] or "")) != id(module):
                return False  # convert_sync_batchnorm, quantisation and others replace modules
            if type(module) not in STOCK or fused_layers.has_hooks(module):
                return False
        if fused_layers.has_own_forward(self.parent):
            return False  # it may call them in another order
        exporting = fused_layers.is_exporting()
        return not exporting and input.dim() == 4 and dispatch.device_has_kernels(input.device)


class FusedDepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that computes the BatchNorm and activation after it, too."""

    group: Group

    def forward(self, input: Tensor) -> Tensor:
        """act(bn(conv(input)))."""
        if not self.group.is_active(self, input):
            return super().forward(input)
        norm = self.group.members["bn"]
        fused_layers.count_batch(norm)
        bn = fused_layers.read_batch_norm(norm, self.group.activation)
        return functional.depthwise_conv_bn_relu(
            input,
            self.weight,
            *bn[:4],
            stride=self.stride[0],
            padding=_padding(self),
            dilation=self.dilation[0],
            training=bn.training,
            momentum=bn.momentum,
            eps=bn.eps,
            activation=bn.activation,
        )


class FusedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm that computes the activation after it, unless the convolution did both."""

    group: Group

    def forward(self, input: Tensor) -> Tensor:
        """act(bn(input)), or the input."""
        if not self.group.is_active(self, input):
            return super().forward(input)
        if "conv" in self.group.members:
            return input
        fused_layers.count_batch(self)
        bn = fused_layers.read_batch_norm(self, self.group.activation)
        return functional.bn_relu(input, **bn.arguments)


class PassedReLU(nn.ReLU):
    """A ReLU that has been computed already."""

    group: Group

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        return input if self.group.is_active(self, input) else super().forward(input)


class PassedReLU6(nn.ReLU6):
    """A ReLU6 that has been computed already."""

    group: Group

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        return input if self.group.is_active(self, input) else super().forward(input)


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: FusedDepthwiseConv2d,
    nn.BatchNorm2d: FusedBatchNorm2d,
    nn.ReLU: PassedReLU,
    nn.ReLU6: PassedReLU6,
}
STOCK = {fused: stock for stock, fused in FUSED.items()}


def fuse(model: Model) -> Model:
    """Run a network's depthwise conv + BatchNorm + ReLU, and BatchNorm + ReLU, as fused units.

    Finds chains of nn.Conv2d (depthwise, without bias), nn.BatchNorm2d and nn.ReLU or nn.ReLU6 that
    are children of one module, by tracing each module's forward with torch.fx; a module that cannot
    be traced stays as it is. MobileNet becomes FusedMobileNet. Modules with hooks or a forward of
    their own, replaced ones, replicas of nn.DataParallel and devices without kernels run as before,
    and so does everything while torch.export records. The members of a chain belong together: do
    not call one of them alone; `unfuse` first.

    Args:
        model: changed in place: the same modules, parameters and state dict, other classes.

    Returns:
        The model. With nothing to fuse in it, there is a warning.
    """
    uses = Counter(id(child) for module in model.modules() for child in module._modules.values())
    count = 0
    for module in list(model.modules()):
        if type(module) in OWN:
            module.__class__ = OWN[type(module)]
            count += 1
        elif not isinstance(module, layers.ConvBNReLU):
            for group in _find_groups(module, uses):
                for member in group.members.values():
                    member.__class__ = FUSED[type(member)]
                    member.__dict__["group"] = group
                count += 1
    if not count and not any(type(module) in _all_fused() for module in model.modules()):
        warnings.warn(
            f"fuse: found no BatchNorm2d with a depthwise Conv2d or ReLU in {type(model).__name__}",
            stacklevel=2,
        )
    return model


def unfuse(model: Model) -> Model:
    """Undo `fuse`: every module has its stock class and forward again.

    Args:
        model: changed in place. FusedMobileNet becomes MobileNet.

    Returns:
        The model.
    """
    own = {fused: stock for stock, fused in OWN.items()}
    for module in model.modules():
        stock = {**own, **STOCK}.get(type(module))
        if stock is not None:
            for attribute in ("group", "_frozen", "_structure"):
                module.__dict__.pop(attribute, None)
            module.__class__ = stock
    return model


def _all_fused() -> set[type[nn.Module]]:
    return {*OWN.values(), *STOCK}


class _Chain(NamedTuple):
    conv: str | None
    bn: str
    act: str | None


class _Tracer(fx.Tracer):
    """Records which children a module calls, and not what they do."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _find_groups(parent: nn.Module, uses: Counter[int]) -> Iterator[Group]:
    """Chains of the parent's own children, the same when it trains as when it does not."""
    if not any(type(child) is nn.BatchNorm2d for child in parent.children()):
        return
    was_training, found = parent.training, []
    try:
        for mode in (not was_training, was_training):
            parent.training = mode
            found.append(set(_find_chains(parent, uses)))
    except Exception:  # whatever a forward raises when it is traced
        return
    finally:
        parent.training = was_training
    for chain in sorted(found[0] & found[1], key=str):
        if chain.conv is not None or chain.act is not None:
            yield Group(parent, *chain)


def _find_chains(parent: nn.Module, uses: Counter[int]) -> Iterator[_Chain]:
    nodes = list(_Tracer().trace(parent).nodes)
    calls = Counter(node.target for node in nodes if node.op == "call_module")

    def child(node: Any) -> nn.Module | None:
        """The child that a node calls, if this is its only call and nobody else has it."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        module = parent._modules.get(str(node.target))
        alone = module is not None and uses[id(module)] == 1 and calls[node.target] == 1
        return module if alone and len(node.args) == 1 and not node.kwargs else None

    for node in nodes:
        if type(child(node)) is not nn.BatchNorm2d:
            continue
        before = node.args[0]
        conv = child(before)
        has_conv = conv is not None and len(before.users) == 1 and _is_depthwise(conv)
        after = next(iter(node.users)) if len(node.users) == 1 else None
        has_act = type(child(after)) in ACTIVATIONS
        yield _Chain(
            str(before.target) if has_conv else None,
            str(node.target),
            str(after.target) if has_act and after is not None else None,
        )


def _is_depthwise(conv: nn.Module) -> bool:
    """Tell whether the kernels have such a convolution."""
    if type(conv) is not nn.Conv2d or conv.bias is not None or conv.padding_mode != "zeros":
        return False
    square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.dilation))
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return square and depthwise and isinstance(conv.padding, tuple)


def _padding(conv: nn.Conv2d) -> Padding:
    """(left, right, top, bottom); _is_depthwise has seen that padding is no text."""
    rows, columns = map(int, conv.padding)
    return columns, columns, rows, rows
