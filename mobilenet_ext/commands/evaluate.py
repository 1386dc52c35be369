"""`mobilenet-ext evaluate`: accuracy, a table of the classes, and which is taken for which."""

import argparse
import json
import pathlib
from typing import TYPE_CHECKING

from .failure import fail
from .model import add_model_arguments, load_classifier

if TYPE_CHECKING:
    from ..evaluation import Scores

HELP = "accuracy on CIFAR-10 or on a folder of images, class by class"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_model_arguments(parser)
    add = parser.add_argument
    add("--data", type=pathlib.Path, metavar="DIR", help="CIFAR-10, or a folder a class")
    add("--download", action="store_true", help="fetch CIFAR-10, into --data if it is given")
    add("--batch-size", type=int, default=500, metavar="N")
    add("--device", default="cpu", help="default: cpu")
    add("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")
    add("--workers", type=int, default=0, metavar="N", help="image folders: processes that decode")
    add("--plot", type=pathlib.Path, metavar="PNG", help="draw the confusion matrix there")
    add("--json", action="store_true", help="print numbers for a program")


def run(options: argparse.Namespace) -> int:
    """Evaluate and print."""
    import torch

    from ..checks import require
    from ..data import DataError
    from ..data.labelled import labelled_batches
    from ..dispatch import has_device
    from ..evaluation import evaluate, plot_confusion

    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        require(has_device(options.device), "--device", "one that torch has here", options.device)
        model = load_classifier(options).to(options.device)
        folder = data_folder(options)
        count = model.config["num_classes"]
        names = model.class_names or tuple(str(number) for number in range(count))
        batches = labelled_batches(model, folder, options.batch_size, options.workers)
        scores = evaluate(model, batches, count, prepare=lambda x: x.to(options.device))
        print(as_json(scores, names) if options.json else as_text(scores, names))
        if options.plot:
            plot_confusion(options.plot, scores, names)
            print(f"wrote {options.plot}")
    except (DataError, ValueError, ImportError, OSError) as error:
        return fail(error)
    return 0


def data_folder(options: argparse.Namespace) -> pathlib.Path:
    """Return the folder of the images; with --download CIFAR-10 is fetched into it."""
    from ..data import DataError
    from ..data.download import default_folder, download_cifar10

    folder: pathlib.Path = options.data or default_folder()
    if options.download:
        return download_cifar10(folder)
    if options.data is None and not folder.is_dir():
        raise DataError("--data DIR says where the images are; --download fetches CIFAR-10")
    return folder


def as_text(scores: "Scores", names: tuple[str, ...]) -> str:
    """Return the table; classes without images are left out."""
    lines = [
        f"{scores.images:,} images: top-1 {100 * scores.accuracy:.2f} %, top-5 "
        f"{100 * scores.top5:.2f} %, loss {scores.loss:.4f}",
        "",
    ]
    width = max(len("class"), *map(len, names))
    lines.append(f"{'class':<{width}}  images  recall  precision  most often taken for")
    for place, name in enumerate(names):
        row = scores.confusion[place].clone()
        count = int(row.sum())
        if not count:
            continue
        row[place] = 0
        mistakes = int(row.max())
        other = f"{names[int(row.argmax())]} ({mistakes:,})" if mistakes else "none"
        recall, precision = (100 * float(x[place]) for x in (scores.recall, scores.precision))
        lines.append(f"{name:<{width}}  {count:6,}  {recall:5.1f} %  {precision:7.1f} %  {other}")
    return "\n".join(lines)


def as_json(scores: "Scores", names: tuple[str, ...]) -> str:
    """Return everything as one object."""
    content = {
        "images": scores.images,
        "top1": scores.accuracy,
        "top5": scores.top5,
        "loss": scores.loss,
        "classes": names,
        "confusion": scores.confusion.tolist(),
    }
    return json.dumps(content)
