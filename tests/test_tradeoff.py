"""The trade-off study and the comparison of an epoch run from end to end, on a tiny data set."""

import json
import pathlib

import pytest
import torch
from test_latency import BENCHMARKS
from training_data import RECORDS, write_cifar

from mobilenet_ext.data import cifar10


@pytest.fixture
def data(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> pathlib.Path:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
    return write_cifar(tmp_path / "data")


def test_study_trains_skips_and_reports(
    data: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import tradeoff

    monkeypatch.setattr(tradeoff, "ALPHAS", (0.25,))
    monkeypatch.setattr(tradeoff, "RESOLUTIONS", (64, 32))
    command = ["--data", str(data), "--runs", str(tmp_path / "runs"), "--alphas", "0.25", "0.5"]
    command += ["--results", str(tmp_path / "results"), "--rounds", "1", "--min-time", "0.01"]
    command += ["--threads", "1", "--epochs", "1", "--batch-size", "40"]
    assert tradeoff.main(command) == 0
    assert capsys.readouterr().out.count("epoch 1: ") == 2
    assert tradeoff.main(command) == 0
    printed = capsys.readouterr().out
    assert "epoch 1: " not in printed  # nothing is trained twice
    content = json.loads((tmp_path / "results/tradeoff.json").read_text())
    assert [each["alpha"] for each in content["cifar10"]] == [0.25, 0.5]
    assert content["cifar10"][1]["parameters"] == 834_666
    assert [each["resolution"] for each in content["imagenet"]] == [64, 32]
    assert all(each["median_ms"] > 0 for each in content["imagenet"])
    accuracy = content["cifar10"][0]["accuracy"]
    assert f"| 0.25 | 1 | {100 * accuracy:.2f} % |" in printed
    assert (tmp_path / "results/alpha-0.5.csv").read_text().startswith("epoch,")


def test_epoch_compares_what_is_there(
    data: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import epoch

    path = tmp_path / "epoch.json"
    command = ["--data", str(data), "--threads", "1", "--rounds", "1", "--alpha", "0.25"]
    assert epoch.main([*command, "--keras-python", "/no/python", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    names = [each["contender"] for each in content["results"]]
    assert names == ["mobilenet_ext", "stock, channels_last", "stock"]
    assert content["results"][0]["ratio"] == 1.0
    assert content["steps_of_an_epoch"] == 5 * RECORDS // 32
    assert "keras: not available: " in capsys.readouterr().out
    assert torch.get_num_threads() == 1
