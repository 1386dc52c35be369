"""The command line, and the parameter tables of the survey."""

import pathlib
import subprocess
import sys

import pytest
from training_data import RECORDS, write_cifar

from mobilenet_ext import cli, summary
from mobilenet_ext.data import cifar10

# name: output, parameters; alpha 0.5, 32 x 32 pixels, 10 classes, as Keras printed it
SURVEY = {
    "conv1": ("16×16×16", "432"),
    "conv1_bn": ("16×16×16", "64"),
    "conv_dw_1": ("16×16×16", "144"),
    "conv_dw_1_bn": ("16×16×16", "64"),
    "conv_pw_1": ("16×16×32", "512"),
    "conv_pw_1_bn": ("16×16×32", "128"),
    "conv_dw_2": ("8×8×32", "288"),
    "conv_dw_2_bn": ("8×8×32", "128"),
    "conv_pw_2": ("8×8×64", "2,048"),
    "conv_pw_2_bn": ("8×8×64", "256"),
    "conv_dw_13": ("1×1×512", "4,608"),
    "conv_dw_13_bn": ("1×1×512", "2,048"),
    "conv_pw_13": ("1×1×512", "262,144"),
    "conv_pw_13_bn": ("1×1×512", "2,048"),
    "conv_preds": ("10", "5,130"),
}


def test_summary_prints_the_survey_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--alpha", "0.5", "--resolution", "32", "--num-classes", "10"]
    assert cli.main(["summary", *options]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    printed = {row[0]: (row[1], row[2]) for row in rows if len(row) in (3, 4)}
    assert {name: printed[name] for name in SURVEY} == SURVEY
    assert ["total", "parameters", "834,666"] in rows
    assert ["trainable", "parameters", "823,722"] in rows
    assert ["non-trainable", "parameters", "10,944"] in rows


def test_every_layer_is_listed_once() -> None:
    names = [layer.name for layer in summary.layers(0.5, 32, 10)]
    assert len(names) == len(set(names)) == 2 * 27 + 1


# alpha: multiply-adds in M at 224, 192, 160, 128; parameters; trainable parameters
SIZES = {
    1.0: ([568.7, 418.1, 290.7, 186.4], 4_253_864, 4_231_976),
    0.75: ([325.4, 239.3, 166.4, 106.8], 2_601_976, 2_585_560),
    0.5: ([149.5, 110.0, 76.5, 49.2], 1_342_536, 1_331_592),
    0.25: ([41.0, 30.2, 21.1, 13.6], 475_544, 470_072),
}


@pytest.mark.parametrize("alpha", SIZES)
def test_size_table(alpha: float, capsys: pytest.CaptureFixture[str]) -> None:
    millions, parameters, trainable = SIZES[alpha]
    assert cli.main(["summary", "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.split()[0] == f"{alpha:g}")
    numbers = " ".join(f"{count} M" for count in millions)
    assert row.split() == f"{alpha:g} {numbers} {parameters:,} {trainable:,}".split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resolution", "31"], "resolution must be at least 32, got 31"),
        (["--alpha", "0.01"], "alpha must be at least 1/32, got 0.01"),
    ],
)
def test_summary_refuses(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["summary", *options]) == 1
    assert message in capsys.readouterr().err


def test_odd_sizes_round_as_keras_pads() -> None:
    sizes = [layer.output[0] for layer in summary.layers(1.0, 225)[::2]]
    assert sizes[:2] == [113, 113]  # the stem is SAME: upwards
    assert sizes[3] == 56  # a strided depthwise convolution pads (0, 1): downwards


def test_train_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", 8)
    for name in (*cifar10.TRAINING_FILES, *cifar10.VALIDATION_FILES):
        records = [bytes([row]) + bytes([31 * row]) * 3072 for row in range(8)]
        (tmp_path / name).write_bytes(b"".join(records))
    output = tmp_path / "run"
    command = ["train", "--data", str(tmp_path), "--output", str(output), "--alpha", "0.25"]
    more = ["--epochs", "1", "--batch-size", "8", "--no-channels-last", "--no-tensorboard"]
    assert cli.main([*command, *more]) == 0
    assert "epoch 1: train loss" in capsys.readouterr().out
    written = {path.stem for path in output.iterdir()}
    assert written - {"curves"} == {"checkpoint", "log", "recipe", "weights"}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--alpha", "0.01", "alpha must be finite and at least 1/32, got 0.01"),
        ("--bn-momentum", "2", "bn_momentum must be in [0, 1], got 2.0"),
        ("--device", "gpu", "device must be one that torch has here, got 'gpu'"),
        ("--device", "cuda:99", "device must be one that torch has here, got 'cuda:99'"),
    ],
)
def test_train_refuses(
    option: str,
    value: str,
    message: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
    command = ["train", "--data", str(write_cifar(tmp_path / "data"))]
    assert cli.main([*command, "--output", str(tmp_path / "run"), option, value]) == 1
    assert capsys.readouterr().err == f"mobilenet-ext: error: {message}\n"
    assert not (tmp_path / "run").exists()


def test_train_reports_missing_data(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--data", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mobilenet-ext: error: ")
    assert "data_batch_1.bin" in error


def test_doctor_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) in (0, 1)
    assert "torch" in capsys.readouterr().out


def test_unknown_command_is_refused() -> None:
    with pytest.raises(SystemExit):
        cli.main(["fly"])


def test_runs_as_a_module(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "mobilenet_ext", "summary", "--table"]
    # Not in the source tree, which -m would put before the installed package.
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "568.7 M" in done.stdout
