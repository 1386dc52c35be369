"""How good a classifier is: loss, top-1, top-5, and which class is taken for which."""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Scores", "evaluate", "plot_confusion"]


@dataclass(frozen=True)
class Scores:
    """What came out, over all images together."""

    loss: float  # mean cross-entropy
    top5: float  # share of images whose class is among the five most likely
    confusion: Tensor  # [K, K], int64: images of class i (row) that were taken for class j

    @property
    def images(self) -> int:
        """How many there were."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of images whose class is the most likely one, 0 to 1."""
        return float(self.confusion.trace()) / max(1, self.images)

    @property
    def recall(self) -> Tensor:
        """Share of each class's images that were recognised [K]; NaN without images."""
        return self.confusion.diagonal() / self.confusion.sum(1)

    @property
    def precision(self) -> Tensor:
        """Share of the images taken for each class that belong to it [K]; NaN without any."""
        return self.confusion.diagonal() / self.confusion.sum(0)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode; after the block each of its modules has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # networks that keep something for one mode let go of it
        for module, mode in modes:
            module.training = mode


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    prepare: Callable[[Tensor], Tensor] = lambda images: images,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Scores:
    """Run `model` in eval mode over batches of images [N, C, H, W] and labels [N].

    Args:
        model: Returns logits [N, num_classes].
        batches: What to run it on.
        num_classes: Of the data and the model.
        prepare: What happens to the images first: device, memory format.
        reduce: Adds up sums over all processes; called once, with float64 [2 + K * K].

    Returns:
        The scores over everything; every module is left in the mode that it had.
    """
    loss, among_five = 0.0, 0
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.float64)
    with eval_mode(model), torch.inference_mode():
        for images, labels in batches:
            logits, truth = model(prepare(images)).float().cpu(), labels.cpu()
            loss += F.cross_entropy(logits.double(), truth, reduction="sum").item()
            best = logits.topk(min(5, num_classes)).indices
            among_five += int((best == truth[:, None]).sum())
            pairs = truth * num_classes + best[:, 0]
            confusion += torch.bincount(pairs, minlength=len(confusion))
    sums = reduce(torch.cat([torch.tensor([loss, among_five], dtype=torch.float64), confusion]))
    count = max(1.0, float(sums[2:].sum()))
    table = sums[2:].long().view(num_classes, num_classes)
    return Scores(float(sums[0]) / count, float(sums[1]) / count, table)


def plot_confusion(path: pathlib.Path, scores: Scores, names: Sequence[str]) -> None:
    """Draw which class is taken for which, in percent of each class's images.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'mobilenet_ext[train]'") from error
    shares = 100 * scores.confusion / scores.confusion.sum(1, keepdim=True).clamp(min=1)
    size = min(16.0, 2.5 + 0.45 * len(names))
    figure = Figure(figsize=(size, size), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    if len(names) <= 30:
        places = range(len(names))
        axis.set_xticks(places, names, rotation=90)
        axis.set_yticks(places, names)
        for row in places:
            for column in places:
                share = float(shares[row, column])
                color = "white" if share > 50 else "black"
                if share >= 0.5:
                    axis.text(column, row, f"{share:.0f}", ha="center", va="center", color=color)
    axis.set_xlabel("taken for")
    axis.set_ylabel("is")
    axis.set_title(f"top-1 {100 * scores.accuracy:.2f} % of {scores.images:,} images")
    figure.savefig(path, dpi=120, format="png")
