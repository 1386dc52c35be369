"""The command `mobilenet-ext`; each of its commands is a module in `commands`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = (
    "summary",
    "train",
    "evaluate",
    "predict",
    "convert",
    "export",
    "doctor",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="mobilenet-ext", description="MobileNetV1 with fused kernels for PyTorch."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f".commands.{name}", __package__)
        subparser = commands.add_parser(name, help=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        print("mobilenet-ext: interrupted", file=sys.stderr)
        return 130
    return status
