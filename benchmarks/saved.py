"""How many bytes a training step keeps for its backward, against stock PyTorch in channels_last.

    python benchmarks/saved.py                        # 1.0 at 224 pixels
    python benchmarks/saved.py --alpha 0.5 --resolution 32

Counts every storage that autograd saves, once, and not those of parameters and buffers, nor ours of
a BatchNorm's few vectors. What a step takes at its peak is more: gradients on their way, and
workspaces.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenet_ext import FusedMobileNet, MobileNet


def saved_bytes(model: MobileNet, images: Tensor) -> int:
    """Return the bytes that one forward leaves behind for a backward.

    Args:
        model: In training mode.
        images: [N, 3, H, W].
    """
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers(), images)}
    storages: dict[int, int] = {}

    def save(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        loss = F.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.int64))
    loss.backward()
    return sum(storages.values())


def main() -> None:
    """Print both sizes and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    shape = (options.batch, 3, options.resolution, options.resolution)
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    sizes = []
    for kind in (MobileNet, FusedMobileNet):
        model = kind(1000, options.alpha, dropout=0.0)
        sizes.append(saved_bytes(model.to(memory_format=torch.channels_last), images))
        print(f"{kind.__name__:>14}  {sizes[-1] / 2**20:8.1f} MiB")
    print(f"{'ratio':>14}  {sizes[1] / sizes[0]:8.3f}")


if __name__ == "__main__":
    main()
