"""The command `mobilenet-ext`; every subcommand imports what it needs when it runs."""

import argparse
import pathlib
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="mobilenet-ext", description="MobileNetV1 with fused kernels for PyTorch."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_summary(commands.add_parser("summary", help="layers, parameters and multiply-adds"))
    _add_train(commands.add_parser("train", help="train on CIFAR-10 (binary layout)"))
    commands.add_parser("doctor", help="what is installed, what was loaded, and why not")
    options = parser.parse_args(arguments)
    run = {"summary": _summary, "train": _train, "doctor": _doctor}[options.command]
    try:
        return run(options)
    except KeyboardInterrupt:
        print("mobilenet-ext: interrupted", file=sys.stderr)
        return 130


def _fail(error: Exception) -> int:
    print(f"mobilenet-ext: error: {error}", file=sys.stderr)
    return 1


def _add_summary(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--alpha", type=float, default=1.0, help="width multiplier (default 1)")
    parser.add_argument("--resolution", type=int, default=224, help="image size (default 224)")
    parser.add_argument("--num-classes", type=int, default=1000, help="classes (default 1000)")
    parser.add_argument(
        "--table", action="store_true", help="multiply-adds and parameters by alpha and resolution"
    )


def _summary(options: argparse.Namespace) -> int:
    from .summary import size_table, summary

    try:
        if options.table:
            print(size_table(options.num_classes))
        else:
            print(summary(options.alpha, options.resolution, options.num_classes))
    except ValueError as error:
        return _fail(error)
    return 0


def _add_train(parser: argparse.ArgumentParser) -> None:
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


def _train(options: argparse.Namespace) -> int:
    import torch

    from .data import DataError, load_cifar10
    from .train import Recipe, TrainingError, train

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
        return _fail(error)
    print(f"wrote {options.output}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from .config import doctor

    return doctor()
