"""A network, its optimizer and all else that an update of the weights changes."""

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch
from ..data.sampling import seed_of
from ..model import MobileNet
from .build import make_model, prepare, set_training, wrap
from .distributed import World
from .mixing import Mixing
from .optimizers import make_average, make_optimizer, make_schedule, parameter_groups
from .recipe import Recipe

AVERAGE_EVERY = 8  # updates between those that the average of the weights takes up


class Learner:
    """What is trained, in one of the processes.

    Args:
        recipe: A resolved one.
        num_classes: Of the data.
        updates: Of the weights, an epoch.
        world: The processes that take part.
    """

    def __init__(self, recipe: Recipe, num_classes: int, updates: int, world: World) -> None:
        self.recipe, self.world = recipe, world
        self.model = make_model(recipe, num_classes, world)
        self._network = wrap(self.model, recipe, world)
        # The average costs as much as an update, so it takes up only some; all of few.
        self._average_every = max(1, min(AVERAGE_EVERY, updates // 20))
        decay = recipe.ema_decay**self._average_every
        self._average = make_average(self.model, decay) if recipe.ema_decay else None
        groups = parameter_groups(recipe, self.model)
        self._optimizer, self._flat = make_optimizer(recipe, groups)
        self._schedule = make_schedule(recipe, self._optimizer, updates)
        half = recipe.amp == "float16"
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=half)
        self._mixing = Mixing(recipe, num_classes)

    @property
    def best(self) -> MobileNet:
        """The network to validate and to save: the averaged one where there is one."""
        return self.model if self._average is None else cast("MobileNet", self._average.module)

    @property
    def rate(self) -> float:
        """The learning rate of the layers before the classifier, or of what is trained."""
        return float(self._optimizer.param_groups[0]["lr"])

    def begin(self) -> None:
        """Go into training mode."""
        set_training(self.model, self.recipe)

    def update(self, batches: Sequence[Batch], *place: int) -> Tensor:
        """Update the weights once, by the mean gradient of all batches.

        Args:
            batches: Images [N, C, H, W] and labels [N].
            place: Numbers that no other update has; they decide all chance in it.

        Returns:
            Sum of losses, correct ones, and count of this process's images; [3], float64.
        """
        self.model.zero_grad(set_to_none=True)
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        for number, (images, labels) in enumerate(batches):
            self._seed(*place, number)
            with self._synchronised(number == len(batches) - 1):
                sums += self._accumulate(images, labels, len(batches))
        self._step()
        self._schedule.step()
        if self._average is not None and self._schedule.last_epoch % self._average_every == 0:
            self._average.update_parameters(self.model)
        return sums

    def _seed(self, *place: int) -> None:
        """Let all chance follow from the place, as from nothing else."""
        seed = seed_of(self.recipe.seed, *place, self.world.rank)
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _step(self) -> None:
        """Change the weights by their gradients."""
        for flat in self._flat:
            flat.gather()
        if self.recipe.grad_clip:
            self._scaler.unscale_(self._optimizer)
            groups = self._optimizer.param_groups
            parameters = [each for group in groups for each in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.recipe.grad_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        for flat in self._flat:
            flat.scatter()

    def _accumulate(self, images: Tensor, labels: Tensor, batches: int) -> Tensor:
        """Add this batch's share to the gradients and return its sums."""
        device, recipe = self.world.device, self.recipe
        labels = labels.to(device, non_blocking=True)
        images, targets = self._mixing(prepare(images, recipe, device), labels)
        dtype = torch.float16 if recipe.amp == "float16" else torch.bfloat16
        with torch.autocast(device.type, dtype, enabled=recipe.amp != "off"):
            logits = self._network(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
        self._scaler.scale(loss / batches).backward()
        correct = (logits.detach().argmax(1) == labels).sum()
        count = len(labels)
        seen = correct.new_full((), count)
        return torch.stack([loss.detach().double() * count, correct, seen])

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Let processes add up their gradients in the last batch of an update only."""
        if last or not isinstance(self._network, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self._network.no_sync()

    def synchronise(self) -> None:
        """Give every process the running statistics of the first."""
        self.world.share_buffers(self.model)
        if self._average is not None:
            self.world.share_buffers(self._average)

    def state(self) -> dict[str, Any]:
        """Return all that `load` needs."""
        parts = self._parts()
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self._optimizer,
            "schedule": self._schedule,
            "scaler": self._scaler,
        }
        return parts if self._average is None else {**parts, "average": self._average}
