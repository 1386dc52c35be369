#!/usr/bin/env python3
"""What alpha and resolution trade: accuracy on CIFAR-10, multiply-adds, parameters, latency.

    python benchmarks/tradeoff.py --data DIR                       # the survey's recipe: many hours
    python benchmarks/tradeoff.py --data DIR --recipe modern --epochs 30
    python benchmarks/tradeoff.py --no-training                    # latencies only

Trains every alpha, one after the other; what is finished is not trained again, and what was
interrupted goes on. Then measures latencies, and writes results/tradeoff/.
"""

import argparse
import itertools
import json
import pathlib
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import machine
import torch
import tradeoff_report
from progress import Progress
from report import SCHEMA
from timing import interleave

from mobilenet_ext import FusedMobileNet
from mobilenet_ext.commands.train import add_recipe_arguments, recipe_of
from mobilenet_ext.data import CLASSES, TensorSource, load_cifar10
from mobilenet_ext.summary import ALPHAS, RESOLUTIONS, layers, multiply_adds
from mobilenet_ext.training import Epoch, Recipe, RunOptions, Stopped, World, train

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "tradeoff"
CIFAR_RESOLUTION = 32


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, metavar="DIR", help="CIFAR-10's .bin files")
    add("--runs", type=pathlib.Path, default=pathlib.Path("runs/tradeoff"), metavar="DIR")
    add("--alphas", type=float, nargs="+", default=sorted(ALPHAS), help="default: 0.25 to 1")
    add("--no-training", action="store_true", help="keep the accuracies of the last results")
    add("--threads", type=int, default=machine.cores(), help="default: all cores")
    add("--rounds", type=int, default=9, help="of the latency measurement (default 9)")
    add("--min-time", type=float, default=0.5, help="seconds of each network (default 0.5)")
    add("--results", type=pathlib.Path, default=RESULTS, metavar="DIR")
    add_recipe_arguments(parser.add_argument_group("recipe, and what to change of it"))
    parser.set_defaults(recipe="survey")
    options = parser.parse_args(arguments)
    if options.data is None and not options.no_training:
        parser.error("--data DIR is needed, or --no-training")
    return options


def train_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is not finished; return what became of each alpha."""
    source = TensorSource(
        load_cifar10(options.data, train=True), load_cifar10(options.data, train=False), CLASSES
    )
    entries = []
    for alpha in options.alphas:
        recipe = replace(recipe_of(options), alpha=alpha)
        folder = options.runs / f"alpha-{alpha:g}"
        print(f"alpha {alpha:g}: {folder}", flush=True)
        log = train(
            recipe,
            source,
            RunOptions(folder, resume=True, tensorboard=False),
            World(0, 1, torch.device("cpu")),
        )
        options.results.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "log.csv", options.results / f"alpha-{alpha:g}.csv")
        entries.append(entry(alpha, recipe, log))
    return entries


def entry(alpha: float, recipe: Recipe, log: Sequence[Epoch]) -> dict[str, Any]:
    """Return the numbers of one alpha."""
    best = max(log, key=lambda epoch: epoch.validation_accuracy or 0.0)
    network = layers(alpha, CIFAR_RESOLUTION, len(CLASSES))
    return {
        "alpha": alpha,
        "accuracy": log[-1].validation_accuracy,
        "best_accuracy": best.validation_accuracy,
        "best_epoch": best.epoch,
        "epochs": len(log),
        "minutes": log[-1].total_seconds / 60,
        "seed": recipe.seed,
        "multiply_adds": sum(layer.multiply_adds for layer in network),
        "parameters": sum(layer.parameters for layer in network),
    }


def latencies(
    options: argparse.Namespace, points: Iterable[tuple[float, int]], num_classes: int, title: str
) -> list[dict[str, Any]]:
    """Time folded networks with random weights on one image, all in turns."""
    torch.set_num_threads(options.threads)
    runs, chosen = {}, list(points)
    for alpha, resolution in chosen:
        model = FusedMobileNet(num_classes, alpha).eval().freeze()
        image = torch.randn(1, 3, resolution, resolution).contiguous(
            memory_format=torch.channels_last
        )

        def run(model: torch.nn.Module = model, image: torch.Tensor = image) -> None:
            with torch.inference_mode():
                model(image)

        runs[f"{alpha:g}/{resolution}"] = run
    with Progress(title, options.rounds) as progress:
        timings = interleave(
            runs,
            rounds=options.rounds,
            min_time=options.min_time,
            after_round=lambda number: progress.step("timing"),
        )
    return [
        {
            "alpha": alpha,
            "resolution": resolution,
            "median_ms": timing.median,
            "best_ms": timing.best,
            "multiply_adds": multiply_adds(alpha, resolution, num_classes),
        }
        for (alpha, resolution), timing in zip(chosen, timings.values(), strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; the status of a signal when one ended it."""
    options = parse(arguments)
    path = options.results / "tradeoff.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    torch.set_num_threads(options.threads)
    trained, recipe = before.get("cifar10", []), before.get("recipe")
    if not options.no_training:
        try:
            trained = train_all(options)
        except Stopped as stopped:
            print(f"{stopped}; the same command goes on")
            return stopped.status
        recipe = options.recipe
    small = latencies(
        options, [(each["alpha"], CIFAR_RESOLUTION) for each in trained], len(CLASSES), "CIFAR-10"
    )
    for each, timed in zip(trained, small, strict=True):
        each["median_ms"] = timed["median_ms"]
    grid = list(itertools.product(ALPHAS, RESOLUTIONS))
    content = {
        "schema": SCHEMA,
        "machine": machine.describe(),
        "settings": {"threads": options.threads, "rounds": options.rounds},
        "recipe": recipe,
        "cifar10": trained,
        "imagenet": latencies(options, grid, 1000, "16 ImageNet patterns"),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)
    print(tradeoff_report.markdown(content))
    for drawn in tradeoff_report.draw(options.results, content):
        print(f"wrote {drawn}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
