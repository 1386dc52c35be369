"""A run that was killed and resumed ends with the very bits of one that was not."""

import dataclasses
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from safetensors.torch import load_file
from test_train import ALONE, RECIPE
from training_data import DRIVER, RECORDS, source, start, write_cifar

from mobilenet_ext import cli
from mobilenet_ext.data import Augmentation, Batch, TensorSource, cifar10
from mobilenet_ext.data.sampling import Sampler
from mobilenet_ext.training import Recipe, RunOptions, Stopped, TrainingError, checkpoint, train

RUN = RunOptions(pathlib.Path(), tensorboard=False)


class Interrupted(Exception):
    """Stands for the end of the process."""


def interrupt() -> None:
    raise Interrupted


class FragileSource:
    """A source that calls `then` when batch `fails_at` is asked for, counted over epochs."""

    def __init__(
        self, inner: TensorSource, fails_at: int, then: Callable[[], None] = interrupt
    ) -> None:
        self._inner, self._left, self._then = inner, fails_at, then

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def training(self, sampler: Sampler, augmentation: Augmentation) -> Iterator[Batch]:
        for batch in self._inner.training(sampler, augmentation):
            if self._left == 0:
                self._then()
            self._left -= 1
            yield batch


def same_weights(one: pathlib.Path, other: pathlib.Path) -> bool:
    first, second = (load_file(folder / "weights.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(
        torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8))
        if first[name].ndim
        else first[name] == second[name]
        for name in first
    )


@pytest.mark.parametrize("fails_at", [3, 5, 9])
def test_resumed_run_has_the_same_bits(tmp_path: pathlib.Path, fails_at: int) -> None:
    recipe = dataclasses.replace(
        RECIPE, optimizer="sgd", lr=0.1, ema_decay=0.9, dropout=0.3, accumulate=2, epochs=2
    )
    whole = dataclasses.replace(RUN, output=tmp_path / "whole")
    expected = train(recipe, source(6 * 16), whole, ALONE)
    broken = dataclasses.replace(RUN, output=tmp_path / "broken", save_every=1, resume=True)
    with pytest.raises(Interrupted):
        train(recipe, FragileSource(source(6 * 16), fails_at), broken, ALONE)
    resumed = train(recipe, source(6 * 16), broken, ALONE)
    assert same_weights(tmp_path / "whole", tmp_path / "broken")
    for one, other in zip(expected, resumed, strict=True):
        assert one.train_loss == other.train_loss
        assert one.validation_loss == other.validation_loss


def test_a_run_that_is_overwritten_does_not_come_back(tmp_path: pathlib.Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1)
    run = dataclasses.replace(RUN, output=tmp_path)
    train(recipe, source(2 * 16), run, ALONE)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "curves.png").touch()
    (tmp_path / "notes.txt").write_text("the user's")
    again = dataclasses.replace(run, overwrite=True)
    with pytest.raises(Interrupted):
        train(recipe, FragileSource(source(4 * 16), 1), again, ALONE)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", "notes.txt"}
    whole = train(recipe, source(4 * 16), dataclasses.replace(RUN, output=tmp_path / "x"), ALONE)
    resumed = train(recipe, source(4 * 16), dataclasses.replace(run, resume=True), ALONE)
    assert [epoch.train_loss for epoch in resumed] == [epoch.train_loss for epoch in whole]


def test_what_cannot_start_overwrites_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that a run starts from stay until it has its own, even those in its folder."""
    recipe = dataclasses.replace(RECIPE, epochs=1)
    run = dataclasses.replace(RUN, output=tmp_path, overwrite=True)
    train(recipe, source(2 * 16), run, ALONE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    weights = tmp_path / "weights.safetensors"
    other = dataclasses.replace(recipe, init_from=str(weights), alpha=0.5)
    with pytest.raises(TrainingError, match="give --alpha"):
        train(other, source(2 * 16), run, ALONE)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="--tensorboard"):
        train(recipe, source(2 * 16), dataclasses.replace(run, tensorboard=True), ALONE)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    start = dataclasses.replace(recipe, init_from=str(weights))
    with pytest.raises(Interrupted):
        train(start, FragileSource(source(2 * 16), 1), run, ALONE)
    assert weights.read_bytes() == before[weights.name]
    assert not (tmp_path / checkpoint.NAME).exists()


def test_what_a_killed_process_was_writing_goes(tmp_path: pathlib.Path) -> None:
    run = dataclasses.replace(RUN, output=tmp_path, resume=True)
    (tmp_path / f"{checkpoint.NAME}.123.part").write_bytes(b"half")
    (tmp_path / "mine.part").write_bytes(b"kept")
    train(dataclasses.replace(RECIPE, epochs=1), source(2 * 16), run, ALONE)
    assert [path.name for path in tmp_path.glob("*.part")] == ["mine.part"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step(tmp_path: pathlib.Path, number: int) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=2)
    run = dataclasses.replace(RUN, output=tmp_path / "stopped", resume=True)
    handler = signal.getsignal(number)
    loud = FragileSource(source(5 * 16), 7, lambda: signal.raise_signal(number))
    with pytest.raises(Stopped) as stopped:
        train(recipe, loud, run, ALONE)
    assert stopped.value.status == 128 + number
    assert signal.getsignal(number) == handler
    saved = torch.load(run.output / checkpoint.NAME, weights_only=True)
    assert (saved["epoch"], saved["done"]) == (2, 3)  # the step of that batch is in
    train(recipe, source(5 * 16), run, ALONE)
    train(recipe, source(5 * 16), dataclasses.replace(RUN, output=tmp_path / "whole"), ALONE)
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")


def wait_for(path: pathlib.Path, process: "subprocess.Popen[str]") -> None:
    """Until the file exists, or the process has ended."""
    limit = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    assert path.exists(), process.communicate()


def test_a_killed_process_loses_nothing(
    tmp_path: pathlib.Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGKILL, wherever it is; this process ends the run."""
    data, output = write_cifar(tmp_path / "data"), tmp_path / "killed"
    sizes = ["--alpha", 0.25, "--batch-size", 8, "--epochs", 3, "--recipe", "survey"]
    options = [*sizes, "--data", data, "--device", "cpu", "--save-every", 1, "--no-tensorboard"]
    command = ["train", *options, "--resume", "--threads", 1, "--seed", 5, "--output"]

    process = start("-c", DRIVER, *command, output)
    wait_for(output / checkpoint.NAME, process)
    process.kill()
    process.communicate(timeout=60)
    assert not (output / "weights.safetensors").exists(), "an epoch ended before it was killed"

    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
    for folder in (output, tmp_path / "whole"):
        assert cli.main([str(part) for part in (*command, folder)]) == 0
    assert same_weights(output, tmp_path / "whole")


def test_the_command_ends_with_the_status_of_the_signal(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: object) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
    monkeypatch.setattr("mobilenet_ext.training.train", stopped)
    data = write_cifar(tmp_path / "data")
    assert cli.main(["train", "--data", str(data), "--output", "here"]) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; --resume goes on with here" in capsys.readouterr().out


def test_checkpoint_is_replaced_whole(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe()
    checkpoint.save(tmp_path, {"recipe": dataclasses.asdict(recipe), "value": 1})

    def broken(content: object, path: pathlib.Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, {"value": 2})
    loaded = checkpoint.load(tmp_path, recipe)
    assert loaded is not None
    assert loaded["value"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


def test_damaged_checkpoint_is_told(tmp_path: pathlib.Path) -> None:
    assert checkpoint.load(tmp_path, Recipe()) is None
    (tmp_path / checkpoint.NAME).write_bytes(b"PK nothing")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a checkpoint that can be read"):
        checkpoint.load(tmp_path, Recipe())


def test_order_and_chance_depend_on_the_place_only() -> None:
    def batches(start: int) -> list[Batch]:
        sampler = Sampler(seed=1, epoch=2, batch_size=4, start=start)
        return list(source(12).training(sampler, Augmentation()))

    for one, other in zip(batches(0)[1:], batches(1), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
