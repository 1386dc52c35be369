"""Two processes under torchrun: the losses of one with the whole batch, and one writer."""

import csv
import pathlib
import socket

import pytest
import torch.distributed as dist
from training_data import DRIVER, RECORDS, start, write_cifar

from mobilenet_ext import cli
from mobilenet_ext.data import cifar10

LAUNCHER = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1")
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def rows(folder: pathlib.Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open() as file:
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]


def test_two_processes_equal_one(
    tmp_path: pathlib.Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, driver = write_cifar(tmp_path / "data"), tmp_path / "driver.py"
    driver.write_text(DRIVER)
    # Rounding grows fast in a fresh network, so these are few and small steps.
    sizes = ["--alpha", 0.25, "--batch-size", 80, "--epochs", 2, "--lr", 1e-5, "--dropout", 0]
    options = ["train", "--data", data, "--device", "cpu", "--threads", 1, "--no-tensorboard"]
    options += [*sizes, "--optimizer", "adam", "--sync-bn", "--output"]
    outputs = [tmp_path / "one", tmp_path / "two"]
    launcher = (*LAUNCHER, f"--master-port={free_port()}")
    both = start(driver, *options, outputs[1], launcher=launcher)
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
    assert cli.main([str(part) for part in (*options, outputs[0])]) == 0
    printed, errors = both.communicate(timeout=180)
    assert both.returncode == 0, errors
    assert printed.count("epoch 1: ") == printed.count("wrote ") == 1
    one, two = map(rows, outputs)
    assert len(one) == len(two) == 2
    for alone, shared in zip(one, two, strict=True):
        assert shared["train_loss"] == pytest.approx(alone["train_loss"], rel=5e-5)
        assert shared["validation_loss"] == pytest.approx(alone["validation_loss"], rel=5e-5)
        # Counts of images: exact up to the few whose two best classes are as good as equal.
        assert abs(shared["train_accuracy"] - alone["train_accuracy"]) <= 4 / 160
        assert shared["learning_rate"] == alone["learning_rate"]
