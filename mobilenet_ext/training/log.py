"""What a run leaves to look at: lines or a bar, a CSV file, TensorBoard, a plot."""

import csv
import pathlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tqdm import tqdm

from ..weights.own import draft

LINE_SECONDS = 30.0  # between lines of progress where there is no terminal
PLOT_SECONDS = 60.0  # between two plots of a run that goes on


@dataclass(frozen=True)
class Epoch:
    """The line that an epoch leaves in the log."""

    epoch: int
    train_loss: float
    train_accuracy: float  # fraction of the augmented training images, 0 to 1
    validation_loss: float | None  # None in epochs without validation
    validation_accuracy: float | None
    learning_rate: float  # at the end of the epoch
    seconds: float  # training and validation
    total_seconds: float  # of all epochs so far
    seed: int

    def __str__(self) -> str:
        """Return the line that is printed."""
        parts = [
            f"epoch {self.epoch}: train loss {self.train_loss:.4f}",
            f"train accuracy {100 * self.train_accuracy:.2f} %",
        ]
        if self.validation_accuracy is not None:
            parts.append(f"validation loss {self.validation_loss:.4f}")
            parts.append(f"validation accuracy {100 * self.validation_accuracy:.2f} %")
        return ", ".join([*parts, f"{self.seconds:.1f} s"])


def summary_writer(wanted: bool | None) -> Any:
    """Return TensorBoard's writer; None if it is not wanted, or nobody said so and it is missing.

    Raises:
        ImportError: It is wanted and not installed.
    """
    if wanted is False:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        if wanted:
            raise ImportError(
                "--tensorboard needs it installed: pip install 'mobilenet_ext[train]'"
            ) from error
        return None
    return SummaryWriter


class Log:
    """Writes to a run's folder; one that is not `active` writes and prints nothing.

    Args:
        folder: Of the run.
        active: Whether this is the process that writes.
        tensorboard: Whether to write for TensorBoard; None: where it is installed.
        done: Epochs before this session.
    """

    def __init__(
        self, folder: pathlib.Path, active: bool, tensorboard: bool | None, done: Sequence[Epoch]
    ) -> None:
        self.epochs = list(done)
        self._folder, self._active = folder, active
        writer = summary_writer(tensorboard) if active else None
        self._writer = writer and writer(folder / "tensorboard", purge_step=len(done) + 1)
        self._plotted = time.monotonic()

    def add(self, epoch: Epoch) -> None:
        """Enter an epoch everywhere."""
        self.epochs.append(epoch)
        if not self._active:
            return
        print(epoch, flush=True)
        write_csv(self._folder / "log.csv", self.epochs)
        if self._writer is not None:
            for name, value in asdict(epoch).items():
                if name not in ("epoch", "seed") and value is not None:
                    self._writer.add_scalar(name.replace("_", "/", 1), value, epoch.epoch)
            self._writer.flush()
        if time.monotonic() - self._plotted > PLOT_SECONDS:
            self.plot()

    def plot(self) -> None:
        """Draw the curves, where matplotlib is installed."""
        if self._active and self.epochs:
            plot(self._folder / "curves.png", self.epochs)
            self._plotted = time.monotonic()

    def close(self) -> None:
        """Draw the last plot and close what is open."""
        self.plot()
        if self._writer is not None:
            self._writer.close()


def write_csv(path: pathlib.Path, epochs: Sequence[Epoch]) -> None:
    """Write a line an epoch, replacing the file whole."""
    with draft(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in epochs)


def plot(path: pathlib.Path, epochs: Sequence[Epoch]) -> bool:
    """Draw loss and accuracy over the epochs; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    validated = [epoch for epoch in epochs if epoch.validation_loss is not None]
    for axis, (name, unit, scale) in zip(
        figure.subplots(1, 2), (("loss", "", 1), ("accuracy", ", %", 100)), strict=True
    ):
        for half, chosen in (("train", epochs), ("validation", validated)):
            values = [scale * getattr(epoch, f"{half}_{name}") for epoch in chosen]
            numbers = [epoch.epoch for epoch in chosen]
            axis.plot(numbers, values, marker="." if len(numbers) < 40 else "", label=half)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("epoch")
        axis.set_ylabel(name + unit)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    with draft(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    return True


class Progress:
    """Progress through an epoch: a bar on a terminal, else a line now and then.

    Args:
        title: Of the epoch.
        total: Updates in it.
        done: Those before this session.
        images: Of an update.
        active: Whether to show anything.
    """

    def __init__(self, title: str, total: int, done: int, images: int, *, active: bool) -> None:
        on_terminal = active and sys.stderr.isatty()
        self._lines = active and not on_terminal
        self._bar = tqdm(
            desc=title, total=total, initial=done, leave=False, disable=not on_terminal
        )
        self._title, self._total, self._first, self._images = title, total, done, images
        self._start = time.monotonic()
        self._next = self._start + LINE_SECONDS

    def reach(self, done: int, loss: float) -> None:
        """Show that `done` updates are over, with the epoch's mean loss up to here."""
        now = time.monotonic()
        rate = (done - self._first) * self._images / max(1e-9, now - self._start)
        if not self._bar.disable:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} images/s", refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._lines and now >= self._next:
            self._next = now + LINE_SECONDS
            print(
                f"{self._title}: step {done} of {self._total}, loss {loss:.4f}, "
                f"{rate:.0f} images/s",
                flush=True,
            )

    def close(self) -> None:
        """Clear the bar."""
        self._bar.close()
