"""The benchmark: it runs from end to end, and does not time what computes something else."""

import functools
import json
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time
from types import ModuleType
from typing import Any

import pytest

from mobilenet_ext import MobileNet

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
TINY = ["--alpha", "0.25", "--resolution", "32", "--threads", "1", "--rounds", "3"]
QUICK = [*TINY, "--min-time", "0.01"]


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, threads: None) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    import latency

    return latency


def statuses(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    content = json.loads(path.read_text())
    return {result["contender"]: result for result in content["points"][0]["results"]}


def has_peak() -> bool:
    """Tell whether the CPU's peak can be measured here."""
    return platform.machine() == "x86_64" and shutil.which("cc") is not None


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_end_to_end(
    latency: ModuleType,
    mode: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out/latency.json"
    arguments = ["--mode", mode, "--batch", "8", "--peers", "eager", "--json", str(output)]
    assert latency.main([*QUICK, *arguments]) == 0
    results = statuses(output)
    ours, peer = results["mobilenet_ext"], results["eager"]
    assert {result["status"] for result in results.values()} == {"timed"}
    assert ours["ratio"] == 1.0
    pairs = zip(peer["round_ms"], ours["round_ms"], strict=True)
    assert peer["ratio"] == pytest.approx(statistics.median(a / b for a, b in pairs), rel=1e-3)
    assert ours["images_per_s"] == pytest.approx(8e3 / ours["median_ms"])
    machine = json.loads(output.read_text())["machine"]
    assert {"cpu", "cores", "packages", "commit", "date"} <= set(machine)
    printed = capsys.readouterr().out
    assert f"{mode} 0.25/32 batch 8, 1 thread" in printed
    assert "the best peer, eager" in printed
    point = json.loads(output.read_text())["points"][0]
    assert (point["fma_gflops"] or 0) > 0 or not has_peak()
    has_share = mode == "inference" and point["fma_gflops"] is not None
    assert ("of the CPU's peak of multiply-adds" in printed) == has_share
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert not (tmp_path / "latency.png").exists()
    else:
        assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


class PlainReLU(MobileNet):
    """A network that forgot to clip at 6."""

    def __init__(self, *sizes: Any, dropout: float) -> None:
        super().__init__(*sizes, dropout=dropout, activation="relu")


class OtherPadding(MobileNet):
    """A network that pads as PyTorch does."""

    def __init__(self, *sizes: Any, dropout: float) -> None:
        super().__init__(*sizes, dropout=dropout, padding="torch")


class OtherMomentum(MobileNet):
    """A network that is right but for its running statistics."""

    def __init__(self, *sizes: Any, dropout: float) -> None:
        super().__init__(*sizes, dropout=dropout, bn_momentum=0.1)


@pytest.mark.parametrize(
    ("mode", "factory"),
    [
        ("inference", PlainReLU),
        ("inference", OtherPadding),
        ("training", PlainReLU),
        ("training", OtherMomentum),
    ],
)
def test_wrong_contenders_are_not_timed(
    latency: ModuleType,
    mode: str,
    factory: type[MobileNet],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import contenders

    def wrong(problem: Any) -> Any:
        model = problem.build(factory, channels_last=True)
        images = problem.inputs(channels_last=True)
        if mode == "training":
            return contenders.training_step(model, model, problem, images)
        return contenders.forward_of(model, problem, images)

    table = contenders.TRAINING if mode == "training" else contenders.INFERENCE
    monkeypatch.setitem(table, "wrong", wrong)
    output = tmp_path / "latency.json"
    arguments = ["--mode", mode, "--batch", "8", "--peers", "wrong", "--json", str(output)]
    assert latency.main([*QUICK, *arguments, "--no-plot"]) == 0
    result = statuses(output)["wrong"]
    assert result["status"] == "disagrees"
    assert result["median_ms"] is None
    assert "relative error" in result["reason"]
    printed = capsys.readouterr().out
    assert "disagrees: " in printed
    assert "no peer was timed" in printed


def test_our_own_error_fails_the_run(latency: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import contenders

    def broken(problem: Any) -> Any:
        raise RuntimeError("the kernel is gone")

    monkeypatch.setitem(contenders.INFERENCE, contenders.OURS, broken)
    arguments = ["--mode", "inference", "--batch", "1", "--peers", "eager", "--no-plot"]
    assert latency.main([*QUICK, *arguments]) == 1


def test_broken_and_absent_peers_are_reported(
    latency: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import contenders

    def broken(problem: Any) -> Any:
        raise RuntimeError("first line\nsecond line")

    def absent(problem: Any) -> Any:
        raise contenders.NotAvailable("pip install absent")

    monkeypatch.setitem(contenders.INFERENCE, "broken", broken)
    monkeypatch.setitem(contenders.INFERENCE, "absent", absent)
    arguments = ["--mode", "inference", "--peers", "broken", "absent", "--no-plot"]
    assert latency.main([*QUICK, *arguments]) == 0
    printed = capsys.readouterr().out
    assert "failed: RuntimeError: first line\n" in printed
    assert "not available: pip install absent" in printed


def test_slow_builds_are_stopped(latency: ModuleType) -> None:
    with pytest.raises(TimeoutError, match=r"not ready after 0\.05 s"), latency.time_limit(0.05):
        time.sleep(10)


@pytest.mark.parametrize("arguments", [["--peers", "nobody"], ["--grid", "--alpha", "1"]])
def test_refuses_nonsense(latency: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        latency.main(arguments)


def test_contenders_take_turns(latency: ModuleType) -> None:
    import timing

    order: list[str] = []
    runs = {name: functools.partial(order.append, name) for name in "ABC"}
    timings = timing.interleave(runs, rounds=4, min_time=0.0)
    warm_up, turns = order[:-24], order[-24:]
    rounds = ["".join(turns[i : i + 6]) for i in range(0, 24, 6)]
    assert {"".join(sorted(round)) for round in rounds} == {"AABBCC"}
    assert all(round[::2] == round[1::2] for round in rounds)
    assert len(set(rounds)) > 1, "always one after the same other"
    assert set(warm_up) == set("ABC")
    assert all(len(timing.rounds) == 4 for timing in timings.values())


def test_ratio_is_the_median_of_pairs(latency: ModuleType) -> None:
    from timing import Timing

    # The machine was three times slower in the second round; the pairs do not care.
    assert Timing([2.0, 6.0, 2.2]).ratio_to(Timing([1.0, 3.0, 1.0])) == 2.0


@pytest.mark.parametrize("resolution", [32, 45])
def test_litert_computes_the_same(latency: ModuleType, resolution: int) -> None:
    pytest.importorskip("ai_edge_litert")
    from contenders import INFERENCE
    from points import Point
    from problem import make_problem

    problem = make_problem(Point("inference", 0.25, resolution, 2, 1, num_classes=10))
    assert problem.disagreements(INFERENCE["litert"](problem).check()) == []


def test_ops_benchmark_verifies_and_prints(
    latency: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    import ops

    arguments = ["--batch", "1", "--threads", "1", "--layers", "14/2/512", "--rounds", "2"]
    assert ops.main([*arguments, "--min-time", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    modes = [line.split()[1] for line in lines[1:]]
    assert modes == ["inference", "forward", "forward+backward"]


def test_readme_shows_the_committed_results() -> None:
    script = str(BENCHMARKS / "readme_table.py")
    done = subprocess.run([sys.executable, script, "--check"], check=False)
    assert done.returncode == 0, "run python benchmarks/readme_table.py"


@pytest.mark.parametrize(("mode", "runs"), [("inference", 1), ("training", 2)])
def test_blocks(latency: ModuleType, mode: str, runs: int, tmp_path: pathlib.Path) -> None:
    """The view by blocks has a line for each of them; forward and backward in training."""
    import blocks

    if not has_peak():
        pytest.skip("needs an x86 processor and a C compiler")
    output = tmp_path / "blocks.json"
    arguments = ["--mode", mode, "--batch", "2", "--num-classes", "10", "--json", str(output)]
    assert blocks.main([*QUICK, *arguments]) == 0
    lines = [row["block"] for row in json.loads(output.read_text())["points"]]
    assert lines.count("16x16x8 -> 16, stride 1") == runs
    assert lines.count("2x2x128 -> 128, stride 1") == 5 * runs
    assert lines.count("1x1x256 -> 256, stride 1") == runs
