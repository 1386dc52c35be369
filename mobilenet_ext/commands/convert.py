"""`mobilenet-ext convert`: weights from any format that is read to any that is written."""

import argparse
import pathlib
import sys
import warnings

from .failure import fail

HELP = "weights from one format to another: own, Keras, Hugging Face, timm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` takes."""
    add = parser.add_argument
    add("source", metavar="IN", help="file, folder, or name such as keras/mobilenet_1_0_224")
    add("target", metavar="OUT", type=pathlib.Path, help="file; folder for huggingface and timm")
    add("--to", choices=["safetensors", "huggingface", "timm"], default="safetensors")
    add("--num-classes", type=int, metavar="N", help="new, untrained classifier; 0: none")
    add("--drop-background", action="store_true", help="1,001 classes to 1,000, without class 0")
    add("--padding", choices=["keras", "same", "torch"], help="instead of the file's own")
    add("--offline", action="store_true", help="take downloads from the cache only")


def run(options: argparse.Namespace) -> int:
    """Convert, say what was written, and return the exit status."""
    from ..weights import export_pretrained, load_pretrained

    arguments = {"num_classes": options.num_classes, "padding": options.padding}
    overrides = {name: value for name, value in arguments.items() if value is not None}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = load_pretrained(
                options.source,
                drop_background=options.drop_background,
                offline=options.offline,
                **overrides,
            )
            written = export_pretrained(model, options.target, options.to)
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    for warning in caught:
        print(f"mobilenet-ext: warning: {warning.message}", file=sys.stderr)
    config = model.config
    classes = f"{config['num_classes']} classes" if config["num_classes"] else "no classifier"
    print(f"wrote {written} ({options.to}): alpha {config['alpha']:g}, {classes}")
    return 0
