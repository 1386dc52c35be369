"""Do we learn as stock PyTorch does? 200 steps on CIFAR-10, against what rounding alone does.

    python benchmarks/losses.py --data DIR

Three runs a seed, from the same weights over the same batches: stock with one thread and with two,
which round differently and soon part, and ours. The first steps from Keras's initialisation are
chaotic, so the learning rate warms up, and a single seed still says little: the mean over seeds
must not lean to one side, and ours must not lie farther from stock than stock from itself.
"""

import argparse
import pathlib

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenet_ext import FusedMobileNet, MobileNet
from mobilenet_ext.data import load_cifar10, normalize

WINDOW = 20
PEAK_RATE = 0.05
RUNS = ((MobileNet, 1), (MobileNet, 2), (FusedMobileNet, 2))

Batches = list[tuple[Tensor, Tensor]]  # images [N, 3, 32, 32] and labels [N]


def losses_of(model: MobileNet, batches: Batches, threads: int) -> Tensor:
    """Train on the batches and return the mean losses of every WINDOW steps."""
    torch.set_num_threads(threads)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK_RATE, momentum=0.9, nesterov=True)
    warm_up = len(batches) // 4
    losses = []
    for step, (images, labels) in enumerate(batches, 1):
        optimizer.param_groups[0]["lr"] = PEAK_RATE * min(1.0, step / warm_up)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack([part.mean() for part in torch.stack(losses).split(WINDOW)])


def runs_of(seed: int, data: tuple[Tensor, Tensor], options: argparse.Namespace) -> Tensor:
    """Return the losses of all RUNS, [runs, windows], from one initialisation."""
    torch.manual_seed(seed)
    images, labels = data
    order = torch.randperm(len(images))[: options.steps * options.batch].split(options.batch)
    batches = [(normalize(images[chosen]), labels[chosen]) for chosen in order]
    start = MobileNet(10, options.alpha, dropout=0.0)
    torch.nn.init.zeros_(start.classifier.weight)  # type: ignore[arg-type]
    losses = []
    for kind, threads in RUNS:
        model = kind(10, options.alpha, dropout=0.0)
        model.load_state_dict(start.state_dict())
        losses.append(losses_of(model, batches, threads))
    return torch.stack(losses)


def main() -> None:
    """Print the means over seeds, and how far the runs of a seed are apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="CIFAR-10's .bin files")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    data = load_cifar10(options.data, train=True)
    runs = torch.stack([runs_of(seed, data, options) for seed in range(options.seeds)])
    print("steps      stock, 1 thread  stock, 2 threads    ours   (means over seeds)")
    for index, (one, two, ours) in enumerate(runs.mean(0).T):
        steps = f"{index * WINDOW + 1}-{(index + 1) * WINDOW}"
        print(f"{steps:<10} {one:15.4f} {two:17.4f} {ours:7.4f}")
    print("seed   stock (2 threads) - stock (1 thread)   ours - stock (1)   ours - stock (2)")
    means = runs.mean(2)
    differences = torch.stack(
        [means[:, 1] - means[:, 0], means[:, 2] - means[:, 0], means[:, 2] - means[:, 1]], 1
    )
    for seed, (itself, one, two) in enumerate(differences):
        print(f"{seed:<6} {itself:36.4f} {one:18.4f} {two:18.4f}")
    for name, values in (
        ("mean", differences.mean(0)),
        ("RMS", differences.square().mean(0).sqrt()),
    ):
        print(f"{name:<6} {values[0]:36.4f} {values[1]:18.4f} {values[2]:18.4f}")


if __name__ == "__main__":
    main()
