"""`mobilenet-ext train`: train on CIFAR-10."""

import argparse
import pathlib

from .failure import fail

HELP = "train on CIFAR-10 (binary layout)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, metavar="DIR", help="CIFAR-10's .bin files")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/cifar10"), metavar="DIR")
    add("--alpha", type=float, default=1.0, help="width multiplier (default 1)")
    add("--epochs", type=int, default=1)
    add("--batch-size", type=int, default=64)
    add("--optimizer", choices=["sgd", "nadam"], default="sgd")
    add("--lr", type=float, help="peak learning rate (default: sgd 0.15, nadam 0.003)")
    add("--shift", type=float, default=0.03, help="largest random shift, of height and width")
    add("--bn-momentum", type=float, default=0.1, help="0.1 by default; Keras has 0.01")
    add("--seed", type=int, default=0)
    add("--model", choices=["fused", "stock"], default="fused")
    add("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    add("--device", default="cpu")
    add("--threads", type=int, help="CPU threads (default: PyTorch's)")


def run(options: argparse.Namespace) -> int:
    """Train and say where the files are."""
    import torch

    from ..data import DataError, load_cifar10
    from ..train import Recipe, TrainingError, train

    names = ("alpha", "epochs", "batch_size", "optimizer", "lr", "shift", "bn_momentum")
    more = ("seed", "model", "channels_last", "device")
    recipe = Recipe(**{name: getattr(options, name) for name in (*names, *more)})
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        training = load_cifar10(options.data, train=True)
        validation = load_cifar10(options.data, train=False)
        train(recipe, training, validation, options.output)
    except (DataError, TrainingError) as error:
        return fail(error)
    print(f"wrote {options.output}")
    return 0
