"""The training loop: epochs of updates, validation, a log, and a checkpoint to go on from."""

import contextlib
import json
import math
import pathlib
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from ..data import Augmentation, Source
from ..data.augment import mean_and_std
from ..data.sampling import Sampler
from ..evaluation import Scores, evaluate
from ..preprocessing import Preprocessing
from ..weights import save_pretrained
from . import checkpoint
from .build import prepare
from .distributed import World
from .errors import Stopped, TrainingError
from .learner import Learner
from .log import Epoch, Log, Progress, summary_writer
from .recipe import Recipe
from .signals import StopSignals

CHECK_EVERY = 50  # updates on a GPU between looks at the loss, which wait for it; 1 elsewhere
VALIDATION_BATCH = 500
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class RunOptions:
    """What a run needs to know and its weights do not depend on."""

    output: pathlib.Path
    resume: bool = False
    overwrite: bool = False
    val_every: int = 1  # epochs between validations; the last one always is
    save_every: int = 0  # updates between checkpoints within an epoch; 0: none
    tensorboard: bool | None = None  # None: where it is installed


def train(recipe: Recipe, source: Source, run: RunOptions, world: World) -> list[Epoch]:
    """Train a network; log, weights and checkpoint are written after every epoch.

    Args:
        recipe: Architecture, optimisation and seed.
        source: The images.
        run: Where the files go, and how often.
        world: The processes that take part.

    Returns:
        One entry an epoch.

    Raises:
        TrainingError: The recipe is impossible, there is a run already, or the loss is no longer
            finite.
        Stopped: SIGTERM or SIGINT came; everything has been saved.
    """
    recipe = recipe.resolved()
    if run.val_every < 1:
        raise TrainingError(f"val_every must be at least 1, got {run.val_every}")
    updates = updates_of_an_epoch(recipe, source.training_count, world)
    saved = find_checkpoint(recipe, run)
    trainer = Trainer(recipe, source, run, world, updates)
    if saved:
        trainer.restore(saved)
    if world.is_first:
        summary_writer(run.tensorboard)
        # Only now that nothing is wrong with what was asked for.
        open_folder(recipe, run, fresh=saved is None)
    return trainer.fit()


def updates_of_an_epoch(recipe: Recipe, images: int, world: World) -> int:
    """Return how often the weights change in an epoch over so many images.

    Raises:
        TrainingError: It is never, or the processes cannot share a batch.
    """
    if recipe.batch_size % world.size:
        raise TrainingError(
            f"batch_size must be a multiple of the {world.size} processes, got {recipe.batch_size}"
        )
    updates = images // recipe.batch_size // recipe.accumulate
    if not updates:
        raise TrainingError(
            f"batch_size × accumulate must be at most the {images} training images, got "
            f"{recipe.batch_size} × {recipe.accumulate}"
        )
    return updates


def find_checkpoint(recipe: Recipe, run: RunOptions) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, if there is one.

    Raises:
        TrainingError: There is one and nobody said what to do with it, or it does not fit.
    """
    if run.resume:
        return checkpoint.load(run.output, recipe)
    if (run.output / checkpoint.NAME).exists() and not run.overwrite:
        raise TrainingError(
            f"{run.output} holds a run already: --resume goes on with it, --overwrite starts "
            "again, --output takes another folder"
        )
    return None


def open_folder(recipe: Recipe, run: RunOptions, *, fresh: bool) -> None:
    """Make the folder of the run; one that starts again takes away what the earlier one left."""
    run.output.mkdir(parents=True, exist_ok=True)
    if fresh:
        shutil.rmtree(run.output / "tensorboard", ignore_errors=True)
    start = pathlib.Path(recipe.init_from or "").resolve()  # --resume may need it again
    for name in (checkpoint.NAME, WEIGHTS, "log.csv", "curves.png"):
        for unfinished in run.output.glob(f"{name}.*.part"):  # by a process that was killed
            unfinished.unlink()
        path = run.output / name
        if fresh and run.overwrite and path.resolve() != start:
            path.unlink(missing_ok=True)
    (run.output / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")


class Trainer:
    """One run, in one of its processes; the arguments are those of `train`."""

    def __init__(
        self, recipe: Recipe, source: Source, run: RunOptions, world: World, updates: int
    ) -> None:
        self.recipe, self.source, self.run, self.world = recipe, source, run, world
        self.updates = updates  # an epoch
        self.learner = Learner(recipe, len(source.classes), updates, world)
        self.log: list[Epoch] = []
        self.epoch, self.done = 1, 0  # the current epoch, and its updates so far
        # Of the current epoch: sum of losses, correct ones, images.
        self.sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        self.started = time.perf_counter()  # less what earlier sessions took for this epoch

    def fit(self) -> list[Epoch]:
        """Train until the last epoch is over."""
        log = Log(self.run.output, self.world.is_first, self.run.tensorboard, self.log)
        with StopSignals() as stop, contextlib.closing(log):
            while self.epoch <= self.recipe.epochs:
                self._train(stop)
                self._finish(log)
        return self.log

    def _train(self, stop: StopSignals) -> None:
        """Do the updates that the epoch still lacks."""
        recipe, world = self.recipe, self.world
        self.learner.begin()
        first = self.done * recipe.accumulate
        place = (recipe.seed, self.epoch, recipe.batch_size, first, world.rank, world.size)
        augmentation = Augmentation(recipe.pixels, recipe.shift, recipe.flip)
        batches = self.source.training(Sampler(*place), augmentation)
        every = CHECK_EVERY if world.device.type == "cuda" else 1
        title = f"epoch {self.epoch}"
        images = recipe.batch_size * recipe.accumulate
        progress = Progress(title, self.updates, self.done, images, active=world.is_first)
        with contextlib.closing(progress):
            while self.done < self.updates:
                group = list(islice(batches, recipe.accumulate))
                self.sums += self.learner.update(group, self.epoch, self.done)
                self.done += 1
                is_last = self.done == self.updates
                if self.done % every == 0 or is_last:
                    self._look(stop)
                    loss, _, seen = self.sums.tolist()
                    progress.reach(self.done, loss / seen)
                if self.run.save_every and self.done % self.run.save_every == 0 and not is_last:
                    self._save()

    def _look(self, stop: StopSignals) -> None:
        """End the run, in all processes alike, if the loss is not finite or a signal came."""
        loss = float(self.sums[0])
        bad, *signals = self.world.sum(
            not math.isfinite(loss),
            stop.received == signal.SIGTERM,
            stop.received == signal.SIGINT,
        )
        if bad:
            raise TrainingError(
                f"the loss became {loss} in epoch {self.epoch}, step {self.done} of "
                f"{self.updates}, at learning rate {self.learner.rate:.2g}; try a lower --lr"
            )
        if any(signals):
            self._save()
            raise Stopped(signal.SIGTERM if signals[0] else signal.SIGINT)

    def _finish(self, log: Log) -> None:
        """Validate, enter the epoch in the log, and save."""
        recipe, last = self.recipe, self.epoch == self.recipe.epochs
        loss, correct, images = self.world.sum(*self.sums.tolist())
        self.learner.synchronise()
        scores = self._validate() if last or self.epoch % self.run.val_every == 0 else None
        if scores and not math.isfinite(scores.loss):
            raise TrainingError(
                f"the validation loss became {scores.loss} in epoch {self.epoch}; try a lower --lr"
            )
        seconds = time.perf_counter() - self.started
        log.add(
            Epoch(
                epoch=self.epoch,
                train_loss=loss / images,
                train_accuracy=correct / images,
                validation_loss=scores.loss if scores else None,
                validation_accuracy=scores.accuracy if scores else None,
                learning_rate=self.learner.rate,
                seconds=seconds,
                total_seconds=seconds + sum(epoch.seconds for epoch in self.log),
                seed=recipe.seed,
            )
        )
        self.log = log.epochs
        self.epoch, self.done = self.epoch + 1, 0
        self.sums.zero_()
        self.started = time.perf_counter()
        if self.world.is_first:
            self._save_weights()
        self._save()

    def _validate(self) -> Scores:
        recipe, world = self.recipe, self.world
        return evaluate(
            self.learner.best,
            self.source.validation(VALIDATION_BATCH, recipe.pixels, world.rank, world.size),
            len(self.source.classes),
            prepare=lambda images: prepare(images, recipe, world.device),
            reduce=world.sum_tensor,
        )

    def _save_weights(self) -> None:
        source, (mean, std) = self.source, mean_and_std(self.recipe.pixels)
        resize = source.resize or source.resolution
        save_pretrained(
            self.learner.best,
            self.run.output / WEIGHTS,
            class_names=source.classes,
            preprocessing=Preprocessing(
                source.resolution, resize, mean=(mean,) * 3, std=(std,) * 3
            ),
            metadata={"recipe": asdict(self.recipe), "epoch": asdict(self.log[-1])},
        )

    def _save(self) -> None:
        sums = self.world.sum(*self.sums.tolist())
        if not self.world.is_first:
            return
        content = {
            "recipe": asdict(self.recipe),
            "learner": self.learner.state(),
            "log": [asdict(epoch) for epoch in self.log],
            "epoch": self.epoch,
            "done": self.done,
            "sums": sums,  # of all processes
            "seconds": time.perf_counter() - self.started,
        }
        checkpoint.save(self.run.output, content)

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.learner.load(saved["learner"])
        self.log = [Epoch(**epoch) for epoch in saved["log"]]
        self.epoch, self.done = saved["epoch"], saved["done"]
        if self.world.is_first:
            self.sums.copy_(torch.tensor(saved["sums"], dtype=torch.float64))
        self.started = time.perf_counter() - saved["seconds"]
