"""`mobilenet-ext summary`: the layers as Keras names them, parameters and multiply-adds."""

import argparse

from .failure import fail

HELP = "layers, parameters and multiply-adds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("--alpha", type=float, default=1.0, help="width multiplier (default 1)")
    add("--resolution", type=int, default=224, help="image size (default 224)")
    add("--num-classes", type=int, default=1000, help="classes (default 1000)")
    add("--table", action="store_true", help="multiply-adds and parameters by alpha and resolution")


def run(options: argparse.Namespace) -> int:
    """Print one table or the other."""
    from ..summary import size_table, summary

    try:
        if options.table:
            print(size_table(options.num_classes))
        else:
            print(summary(options.alpha, options.resolution, options.num_classes))
    except ValueError as error:
        return fail(error)
    return 0
