"""Small data sets to train on, and how to train on them in other processes."""

import os
import pathlib
import subprocess
import sys
import tempfile

import torch
from torch import Tensor

from mobilenet_ext.data import CLASSES, TensorSource, cifar10

# Pretends that files of CIFAR-10 hold RECORDS images, in a process of its own. It ends at once: in
# one of some 40 exits after gloo, torch 2.14 aborts in a destructor, with no Python frame left.
RECORDS = 32
DRIVER = f"""
import os, sys
from mobilenet_ext import cli
from mobilenet_ext.data import cifar10
cifar10.RECORDS_PER_FILE = {RECORDS}
code = cli.main(sys.argv[1:])
sys.stdout.flush(), sys.stderr.flush()
os._exit(code)
"""


def colourful(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images whose colour gives their class away."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    colours = torch.tensor([[(n * k) % 7 * 36 for k in (1, 2, 3)] for n in range(10)])
    noise = torch.randint(0, 40, (count, 3, 32, 32), generator=generator)
    return (colours[labels][:, :, None, None] + noise).clamp(max=255).to(torch.uint8), labels


def source(training: int, validation: int = 20) -> TensorSource:
    return TensorSource(colourful(training, 0), colourful(validation, 1), CLASSES)


def write_cifar(folder: pathlib.Path) -> pathlib.Path:
    """Files of RECORDS images each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate((*cifar10.TRAINING_FILES, *cifar10.VALIDATION_FILES)):
        images, labels = colourful(RECORDS, number)
        records = torch.cat([labels[:, None].to(torch.uint8), images.flatten(1)], 1)
        (folder / name).write_bytes(records.numpy().tobytes())
    return folder


def start(*arguments: object, launcher: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    """Start the command line in another process, with one thread."""
    root = pathlib.Path(cifar10.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    python = [sys.executable, *launcher] if launcher else [sys.executable]
    command = [*python, *map(str, arguments)]
    # Elsewhere than in the source tree, which `python -c` would import from.
    return subprocess.Popen(
        command,
        cwd=tempfile.gettempdir(),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
