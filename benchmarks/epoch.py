#!/usr/bin/env python3
"""Seconds of a training epoch: ours, the same loop with the stock MobileNet, and Keras.

    python benchmarks/epoch.py --data DIR --alpha 0.5 --json results/epoch/mine.json
    python benchmarks/epoch.py --data DIR --keras-python OTHER_ENVIRONMENT/bin/python

All take part in one run, in turns: each turn is a part of the epoch for each of them, augmentation
included. Keras (with its default backend, in a process of its own) gets its batches augmented
already and ready in memory. Validation is not counted.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import machine
import numpy as np
import torch
from progress import Progress
from report import SCHEMA

from mobilenet_ext.commands.train import add_recipe_arguments, recipe_of
from mobilenet_ext.data import CLASSES, Augmentation, TensorSource, load_cifar10
from mobilenet_ext.data.sampling import Sampler
from mobilenet_ext.training import Recipe, World
from mobilenet_ext.training.learner import Learner

Turn = Callable[[int], float]  # a number of steps to the seconds that they took
ALONE = World(0, 1, torch.device("cpu"))
KERAS_BATCHES = 64  # that Keras gets to see again and again
WORKER = pathlib.Path(__file__).with_name("keras_worker.py")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, metavar="DIR", help="CIFAR-10's .bin files")
    add("--share", type=float, default=0.2, help="of the epoch that is run (default 0.2)")
    add("--rounds", type=int, default=5, help="turns (default 5)")
    add("--threads", type=int, default=machine.cores(), help="default: all cores")
    add("--keras-python", default=sys.executable, metavar="PATH", help="a Python that has Keras")
    add("--json", type=pathlib.Path, metavar="PATH", help="write the results there")
    add_recipe_arguments(parser.add_argument_group("recipe, and what to change of it"))
    parser.set_defaults(recipe="survey", alpha=0.5)
    return parser.parse_args(arguments)


def learner_turn(recipe: Recipe, source: TensorSource) -> Turn:
    """Return turns of the training loop, as Trainer does it."""
    recipe = recipe.resolved()
    learner = Learner(recipe, len(CLASSES), source.training_count // recipe.batch_size, ALONE)
    learner.begin()
    augmentation = Augmentation(recipe.pixels, recipe.shift, recipe.flip)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch = 0
        while True:
            epoch += 1
            yield from source.training(Sampler(0, epoch, recipe.batch_size), augmentation)

    stream, done = batches(), 0

    def turn(steps: int) -> float:
        nonlocal done
        start = time.perf_counter()
        for _ in range(steps):
            loss = learner.update([next(stream)], 1, done)[0]
            done += 1
            assert torch.isfinite(loss), "the loss is no longer finite"
        return time.perf_counter() - start

    return turn


@contextlib.contextmanager
def keras_turn(
    options: argparse.Namespace, recipe: Recipe, source: TensorSource
) -> Iterator[tuple[Turn, str]]:
    """Yield turns of Keras's train_on_batch, and its version; RuntimeError where there is none."""
    augmentation = Augmentation(recipe.pixels, recipe.shift, recipe.flip)
    stream = source.training(Sampler(0, 1, recipe.batch_size), augmentation)
    some = [next(stream) for _ in range(KERAS_BATCHES)]
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        images = torch.stack([batch[0] for batch in some]).permute(0, 1, 3, 4, 2).contiguous()
        labels = torch.stack([batch[1] for batch in some])
        np.savez(file, images=images.numpy(), labels=labels.numpy())
        file.flush()
        command = [options.keras_python, str(WORKER), file.name, str(recipe.alpha)]
        process = subprocess.Popen(
            [*command, str(options.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            words = process.stdout.readline().split(maxsplit=1)
            if words[:1] != ["ready"]:
                _, errors = process.communicate()
                raise RuntimeError((errors.strip().splitlines() or ["no answer"])[-1])
            source_pipe, sink = process.stdout, process.stdin

            def turn(steps: int) -> float:
                sink.write(f"{steps}\n")
                sink.flush()
                return float(source_pipe.readline())

            yield turn, words[1].strip()
            sink.close()


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run everybody in turns; return the seconds of an epoch and the ratios to ours."""
    torch.set_num_threads(options.threads)
    recipe = recipe_of(options)
    training = load_cifar10(options.data, train=True)
    source = TensorSource(training, load_cifar10(options.data, train=False), CLASSES)
    steps = source.training_count // recipe.batch_size
    part = max(1, round(options.share * steps / options.rounds))
    with contextlib.ExitStack() as stack:
        turns: dict[str, Turn] = {"mobilenet_ext": learner_turn(recipe, source)}
        for name, channels_last in (("stock, channels_last", True), ("stock", False)):
            changed = replace(recipe, model="stock", channels_last=channels_last)
            turns[name] = learner_turn(changed, source)
        missing = {}
        try:
            turn, version = stack.enter_context(keras_turn(options, recipe, source))
            turns[version] = turn
        except (RuntimeError, OSError) as error:
            missing["keras"] = str(error)
        taken: dict[str, list[float]] = {name: [] for name in turns}
        with Progress("epoch", options.rounds) as progress:
            for turn in turns.values():
                turn(3)
            for _ in range(options.rounds):
                for name, turn in turns.items():
                    taken[name].append(turn(part) / part)
                progress.step()
    ours = taken["mobilenet_ext"]
    return {
        "recipe": options.recipe,
        "alpha": recipe.alpha,
        "batch_size": recipe.batch_size,
        "steps_of_an_epoch": steps,
        "steps_run": part * options.rounds,
        "threads": options.threads,
        "not_available": missing,
        "results": [
            {
                "contender": name,
                "epoch_s": statistics.median(seconds) * steps,
                "ratio": statistics.median(s / o for s, o in zip(seconds, ours, strict=True)),
                "round_step_ms": [1e3 * each for each in seconds],
            }
            for name, seconds in taken.items()
        ],
    }


def table(content: dict[str, object]) -> str:
    """Return the results as text."""
    lines = [
        f"alpha {content['alpha']}, batch {content['batch_size']}, threads: {content['threads']}, "
        f"{content['steps_run']} of {content['steps_of_an_epoch']} steps each"
    ]
    results = content["results"]
    assert isinstance(results, list)
    lines += [
        f"  {each['contender']:<32}  {each['epoch_s']:8.1f} s an epoch  {each['ratio']:5.2f}× ours"
        for each in results
    ]
    missing = content["not_available"]
    assert isinstance(missing, dict)
    return "\n".join(
        [*lines, *(f"  {name}: not available: {why}" for name, why in missing.items())]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    content = measure(options)
    print(table(content))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        whole = {"schema": SCHEMA, "machine": machine.describe(), **content}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
        print(f"wrote {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
