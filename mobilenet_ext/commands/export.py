"""`mobilenet-ext export`: a network as ONNX or as a torch.export program, for any batch size."""

import argparse
import pathlib

from .failure import fail
from .model import add_model_arguments, load_model

HELP = "a network as ONNX or as a torch.export program"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("output", type=pathlib.Path, metavar="OUT", help=".onnx or .pt2")
    add_model_arguments(parser)
    add = parser.add_argument
    add("--format", choices=["onnx", "torch"], help="default: by the name's ending")
    add("--resolution", type=int, metavar="N", help="default: that of the training")


def run(options: argparse.Namespace) -> int:
    """Export, compare with the network, and say where it is."""
    from ..export import export_onnx, export_program

    kind = options.format or {".onnx": "onnx", ".pt2": "torch"}.get(options.output.suffix)
    if kind is None:
        return fail(f"{options.output}: --format onnx or torch, or a name in .onnx or .pt2")
    try:
        model = load_model(options)
        export = export_onnx if kind == "onnx" else export_program
        checked, difference = export(model, options.output, options.resolution)
    except (ValueError, ImportError, OSError) as error:
        return fail(error)
    size = options.output.stat().st_size / 1e6
    print(
        f"wrote {options.output} ({kind}, {size:.1f} MB); {checked} gives the network's logits up "
        f"to {difference:.1g}"
    )
    return 0
