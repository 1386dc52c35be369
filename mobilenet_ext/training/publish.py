"""From a finished run to the network that this package comes with, and its card.

python -m mobilenet_ext.training.publish runs/cifar10
"""

import argparse
import csv
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import torch

from ..weights import embedded, load_pretrained, save_pretrained
from .loop import WEIGHTS

MAX_BYTES = 4_000_000

CARD = """# MobileNetV1, alpha {alpha:g}, CIFAR-10

`{file}`: {parameters:,} parameters in float32, {megabytes:.1f} MB, for images of
{resolution}×{resolution} pixels. `mobilenet-ext predict` and `mobilenet-ext evaluate` use it when
no other is named; in Python it is `load_pretrained("cifar10")`.

| | |
| --- | --- |
| accuracy | {accuracy:.2f} % top-1 on the 10,000 images of CIFAR-10's test batch |
| loss | {loss:.4f} |
| trained on | the 50,000 training images, from random weights; the test batch chose nothing |
| epochs | {epochs}, of which the last is this |
| wall time | {minutes:.0f} minutes |
| made with | torch {torch}, seed {seed} |
| classes | {classes} |

Made by `mobilenet-ext train` with this recipe:

```json
{recipe}
```

What it is for: to see the package work. The classes are those ten, everything else is forced into
one of them; on photos that do not look like CIFAR-10's 32×32 pixels the accuracy is lower.
CIFAR-10: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""


def publish(run: pathlib.Path, target: pathlib.Path = embedded.FILE) -> pathlib.Path:
    """Copy the weights of a finished run to `target`, and write a card beside them.

    Raises:
        ValueError: The run is not finished, or the file would be too large.
    """
    recipe: dict[str, Any] = json.loads((run / "recipe.json").read_text())
    with (run / "log.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    if int(last["epoch"]) != recipe["epochs"]:
        raise ValueError(f"{run}: not finished: epoch {last['epoch']} of {recipe['epochs']}")
    model = load_pretrained(run / WEIGHTS)
    numbers = {name: float(value) for name, value in last.items() if value}
    save_pretrained(model, target, metadata={"recipe": recipe, "epoch": numbers})
    target.chmod(0o644)  # safetensors lets nobody else read what it writes
    size = target.stat().st_size
    if size > MAX_BYTES:
        target.unlink()
        raise ValueError(f"{target}: at most {MAX_BYTES:,} bytes, got {size:,}")
    assert model.preprocessing is not None
    assert model.class_names is not None
    card = CARD.format(
        alpha=model.config["alpha"],
        file=target.name,
        parameters=sum(p.numel() for p in model.parameters())
        + sum(b.numel() for b in model.buffers() if b.ndim),
        megabytes=size / 1e6,
        resolution=model.preprocessing.resolution,
        accuracy=100 * numbers["validation_accuracy"],
        loss=numbers["validation_loss"],
        epochs=recipe["epochs"],
        minutes=numbers["total_seconds"] / 60,
        torch=torch.__version__,
        seed=recipe["seed"],
        classes=", ".join(model.class_names),
        recipe=json.dumps(recipe, indent=1),
    )
    target.with_suffix(".md").write_text(card, encoding="utf-8")
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="folder of `mobilenet-ext train`")
    parser.add_argument("--target", type=pathlib.Path, default=embedded.FILE)
    options = parser.parse_args(arguments)
    target = publish(options.run, options.target)
    print(f"wrote {target} and {target.with_suffix('.md').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
