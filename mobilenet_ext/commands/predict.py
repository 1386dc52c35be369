"""`mobilenet-ext predict`: the most likely classes of images."""

import argparse
import json
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from .failure import fail
from .model import add_model_arguments, load_classifier

if TYPE_CHECKING:
    from torch import Tensor

HELP = "the most likely classes of images"
BAR = 30  # columns of a probability of 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("images", nargs="+", type=pathlib.Path, metavar="IMAGE")
    add_model_arguments(parser)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes (default 5)")
    parser.add_argument("--json", action="store_true", help="print an object an image, one a line")


def run(options: argparse.Namespace) -> int:
    """Print the classes of each image; 1 if one of them was none that can be read."""
    import torch

    try:
        if options.top < 1:
            raise ValueError(f"--top must be at least 1, got {options.top}")
        model = load_classifier(options)
        prepare = model.transforms()
    except (ValueError, ImportError, OSError) as error:
        return fail(error)
    names = model.class_names or tuple(map(str, range(model.config["num_classes"])))
    status = 0
    for path in options.images:
        try:
            image = prepare(open_image(path))
        except OSError as error:
            status = fail(f"{path}: {error}")
            continue
        with torch.inference_mode():
            probabilities = model(image[None])[0].softmax(0)
        best = rank(probabilities, names, options.top)
        if options.json:
            print(json.dumps({"image": str(path), "classes": best}), flush=True)
        else:
            print(as_text(path, best), flush=True)
    return status


def open_image(path: pathlib.Path) -> Any:
    """Return a PIL image in RGB, turned as its EXIF data say.

    Raises:
        OSError: It is no image, is damaged, or larger than any photo.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise OSError("not an image of a kind that Pillow knows") from error
    except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise OSError(f"not an image that can be read: {error}") from error


def rank(probabilities: "Tensor", names: tuple[str, ...], top: int) -> list[dict[str, Any]]:
    """Return the most likely classes, best first."""
    values, places = probabilities.topk(min(top, len(names)))
    pairs = zip(values.tolist(), places.tolist(), strict=True)
    return [{"class": names[place], "probability": value} for value, place in pairs]


def as_text(path: pathlib.Path, best: list[dict[str, Any]]) -> str:
    """Return a block of lines, with bars on a terminal."""
    width = max(len(each["class"]) for each in best)
    lines = [str(path)]
    for each in best:
        line = f"  {each['class']:<{width}}  {100 * each['probability']:5.1f} %"
        if sys.stdout.isatty():
            eighths = round(8 * BAR * each["probability"])
            line += "  " + "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        lines.append(line)
    return "\n".join(lines)
