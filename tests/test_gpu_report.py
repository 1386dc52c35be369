"""The report from a GPU machine: what can be known of it without one."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


KERNELS = [
    {
        "layer": "112/1/32",
        "mode": "conv-norm",
        "dtype": "bfloat16",
        "ms": 0.07,
        "gb_per_s": 2900.0,
        "percent_of_copy": 97.0,
        "stock_ratio": None,
        "disagreement": "",
        "missing": "",
    }
]


def stage(name: str, code: str, limit: float = 20, **options: Any) -> Any:
    from stages import Stage

    return Stage(name, [sys.executable, "-c", code], limit, **options)


def run(stage: Any, tmp_path: Path, seconds: float = 60) -> Any:
    from stages import Budget, run_stage

    return run_stage(stage, Budget(seconds), tmp_path / f"{stage.name}.log", tmp_path)


def test_stages_are_done_or_say_why_not(tmp_path: Path) -> None:
    assert run(stage("good", "print('hello')"), tmp_path).status == "done"
    assert (tmp_path / "good.log").read_text() == "hello\n"
    bad = run(stage("bad", "import sys; print('the reason'); sys.exit(3)"), tmp_path)
    assert (bad.status, bad.reason) == ("failed", "exit status 3: the reason")
    assert run(stage("one", "raise SystemExit(1)", accepted=(0, 1)), tmp_path).status == "done"
    code = "import os; assert os.environ['SET'] == 'yes'"
    assert run(stage("set", code, environment={"SET": "yes"}), tmp_path).status == "done"
    missing = run(SimpleNamespace(**{**vars(stage("m", "")), "command": ["/no/such"]}), tmp_path)
    assert missing.status == "failed"


def test_the_reason_of_a_failure_is_the_end_of_what_was_printed(tmp_path: Path) -> None:
    code = "print('x' * 2000); raise ValueError('the very reason')"
    outcome = run(stage("long", code), tmp_path)
    assert outcome.reason.endswith("ValueError: the very reason")
    assert len(outcome.reason) < 400


def test_a_stage_out_of_time_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    child = f"import time; time.sleep(3); open({str(tmp_path / 'late')!r}, 'w')"
    code = (
        "import subprocess, sys, time; print('started');"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    start = time.monotonic()
    outcome = run(stage("slow", code, limit=1.5), tmp_path)
    assert time.monotonic() - start < 10
    assert (outcome.status, outcome.reason) == ("out of time", "stopped after 2 s")
    assert (tmp_path / "slow.log").read_text() == "started\n"
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_the_budget_is_shared() -> None:
    from stages import Budget

    now = [0.0]
    budget = Budget(100, clock=lambda: now[0])
    assert budget.grant(stage("a", "", 60)) == 60
    now[0] = 70
    assert budget.grant(stage("b", "", 60)) == 30
    now[0] = 95
    assert budget.grant(stage("c", "", 60)) == 0
    assert budget.grant(stage("d", "", 4)) == 4
    now[0] = 200
    assert (budget.left(), budget.grant(stage("e", "", 4))) == (0, 0)


def test_a_stage_without_time_is_not_started(tmp_path: Path) -> None:
    outcome = run(stage("late", "open('ran', 'w')"), tmp_path, seconds=3)
    assert (outcome.status, outcome.reason) == ("not started", "3 s were left")
    assert not (tmp_path / "ran").exists()


def test_without_a_gpu_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = [sys.executable, str(BENCHMARKS / "gpu_report.py"), "--output", str(tmp_path / "out")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "sees no GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_build_and_all_stages_fit_into_ten_minutes() -> None:
    import gpu_report

    assert gpu_report.parse([]).limit < 600
    assert gpu_report.parse(["--no-build"]).limit + gpu_report.BUILD < 600
    assert gpu_report.parse(["--no-build", "--limit", "1800"]).limit == 1800


@pytest.fixture
def gpu_report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import gpu_report

    gpu = {"gpu": "NVIDIA H100 80GB", "torch": "2.11.0", "cuda": "13.0", "why": ""}
    monkeypatch.setattr(gpu_report, "probe", lambda: gpu)
    return gpu_report


def fake_plan(tmp_path: Path, *, kernels: str = "") -> Any:
    """One stage that writes results, one that hangs, one that breaks, one that comes after."""
    import gpu_stages

    def plan(work: Path, *, build: bool, scale: Any) -> Any:
        points = json.dumps({"points": KERNELS})
        result = gpu_stages.result_of("kernels", work)
        write = kernels or f"open({str(result)!r}, 'w').write({points!r})"
        report = tmp_path / "out/gpu-nvidia-h100-80gb.json"
        look = f"import json; assert json.load(open({str(report)!r}))['kernels']"
        nothing, files = gpu_stages.collect_nothing, gpu_stages.collect_kernels
        steps = [
            gpu_stages.Step(stage("kernels", write), files, "kernels"),
            gpu_stages.Step(stage("hangs", "import time; time.sleep(60)", 1), nothing, "tests"),
            gpu_stages.Step(stage("breaks", "1 / 0"), gpu_stages.collect_tests, "sanitizer"),
            gpu_stages.Step(stage("after", look), nothing, "models"),
        ]
        return steps if build else steps[1:]

    return plan


def test_report_is_written_after_every_stage_and_nothing_is_lost(
    gpu_report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_report, "plan", fake_plan(tmp_path))
    output = tmp_path / "out"
    assert gpu_report.main(["--output", str(output), "--commit", "abc"]) == 1
    content = json.loads((output / "gpu-nvidia-h100-80gb.json").read_text())
    statuses = {entry["name"]: entry["status"] for entry in content["stages"]}
    assert statuses == {
        "kernels": "done",
        "hangs": "out of time",
        "breaks": "failed",
        "after": "done",
    }
    assert content["kernels"] == KERNELS
    text = (output / "GPU_STATUS.md").read_text()
    assert "| commit | abc |" in text
    assert "ZeroDivisionError" in text
    assert "| conv-norm | 112/1/32 |" in text


def test_the_commit_that_was_told_stays(tmp_path: Path) -> None:
    import gpu_stages

    result = tmp_path / "machine.json"
    result.write_text(json.dumps({"commit": "another", "driver": "580", "gpu": None}))
    content = {"machine": {"commit": "abc", "gpu": "H100"}}
    gpu_stages.collect_machine(content, result, result)
    assert content["machine"] == {"commit": "abc", "gpu": "H100", "driver": "580"}


def test_a_stage_without_results_has_failed(
    gpu_report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_report, "plan", fake_plan(tmp_path, kernels="print('said this')"))
    assert gpu_report.main(["--output", str(tmp_path / "out")]) == 1
    content = json.loads((tmp_path / "out/gpu-nvidia-h100-80gb.json").read_text())
    assert content["stages"][0]["status"] == "failed"
    assert content["stages"][0]["reason"] == "no results (FileNotFoundError): said this"


def test_only_adds_to_what_an_earlier_run_of_the_same_commit_found(
    gpu_report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_report, "plan", fake_plan(tmp_path))
    output = ["--output", str(tmp_path / "out")]
    gpu_report.main([*output, "--commit", "abc"])
    again = [*output, "--no-build", "--only", "models", "--commit"]
    path = tmp_path / "out/gpu-nvidia-h100-80gb.json"
    gpu_report.main([*again, "abc"])
    content = json.loads(path.read_text())
    assert [entry["name"] for entry in content["stages"]] == [
        "kernels",
        "hangs",
        "breaks",
        "after",
    ]
    assert content["kernels"]
    gpu_report.main([*output, "--commit", "abc", "--resume"])
    content = json.loads(path.read_text())
    assert [entry["name"] for entry in content["stages"]] == [
        "kernels",
        "after",
        "hangs",
        "breaks",
    ]
    gpu_report.main([*again, "other"])
    content = json.loads(path.read_text())
    assert [entry["name"] for entry in content["stages"]] == ["after"]
    assert not content["kernels"]


def test_sanitizer_stage_runs_every_tool_and_reads_its_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a compute-sanitizer that finds one error with one tool and dies with another."""
    import gpu_sanitizer

    fake = tmp_path / "compute-sanitizer"
    fake.write_text(
        "#!/bin/sh\n"
        "test $PYTORCH_NO_CUDA_MEMORY_CACHING = 1 || exit 9\n"
        "echo '24 calls of 6 ops on cuda'\n"
        "case $2 in\n"
        "memcheck) echo '========= ERROR SUMMARY: 1 error'; test $3 = --report-api-errors ;;\n"
        "racecheck) echo '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)' ;;\n"
        "initcheck) exit 4 ;;\n"
        "*) echo '========= ERROR SUMMARY: 0 errors' ;;\n"
        "esac\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    output = tmp_path / "sanitizer.json"
    assert gpu_sanitizer.main(["--json", str(output), "--limit", "30"]) == 1
    found = {entry["tool"]: entry for entry in json.loads(output.read_text())}
    summary = {tool: (entry["status"], entry["errors"]) for tool, entry in found.items()}
    assert summary == {
        "memcheck": ("done", 1),
        "racecheck": ("done", 0),
        "initcheck": ("failed", None),
        "synccheck": ("done", 0),
    }
    assert [tool for tool in found if gpu_sanitizer.is_clean(found[tool])] == [
        "racecheck",
        "synccheck",
    ]
    assert found["racecheck"]["calls"] == 24


def test_the_scripts_take_the_options_that_the_plan_gives_them(tmp_path: Path) -> None:
    import gpu_sanitizer  # noqa: F401
    import gpu_stages
    import latency
    import ops

    steps = gpu_stages.plan(tmp_path, build=True, scale=gpu_stages.Scale())
    assert steps[0].stage.command[:4] == [sys.executable, "-m", "pip", "install"]
    assert sum(step.stage.limit for step in steps[:6]) < 540
    parsers = {"ops.py": ops.parse, "latency.py": latency.parse}
    parsed = []
    for step in steps:
        script = Path(step.stage.command[1]).name
        if script in parsers:
            parsed.append(parsers[script](list(step.stage.command[2:])))
        assert step.group in ("build", "machine", "tests", "sanitizer", "kernels", "models")
    assert len(parsed) == 2 + len(gpu_stages.MODEL_POINTS)
    assert len(parsed[0].mode) == 8
    assert len(parsed[0].layers) == len(parsed[1].layers) == 9
    assert (parsed[1].layout, len(parsed[1].mode)) == (["contiguous"], 2)
    assert len(latency.points_of(parsed[2])) == 1
    assert any(name.endswith("test_cuda.py") for name in gpu_stages.gpu_test_files())
