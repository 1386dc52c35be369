"""GPU_STATUS.md: what it is made from is read right, and everything gets into it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


PYTEST = """\
============================= test session starts ==============================
collecting ... collected 5 items / 1 error / 900 deselected / 5 selected

../tests/test_cuda.py::test_every_dtype[torch.float32-channels 8] PASSED [ 20%]
../tests/test_cuda.py::test_bits PASSED                                  [ 40%]
../tests/test_cuda.py::test_graph FAILED                                 [ 60%]
../tests/test_cuda.py::test_two_gpus SKIPPED (needs two GPUs)            [ 80%]
../tests/test_cuda.py::test_fixture ERROR                                [100%]
"""
SUMMARY = """\
=========================== short test summary info ============================
SKIPPED [1] ../tests/test_cuda.py:90: needs two GPUs
FAILED ../tests/test_cuda.py::test_graph - RuntimeError: got cudaErrorInvalidValue
ERROR ../tests/test_cuda.py::test_fixture - ValueError: no
ERROR ../tests/test_other.py - ModuleNotFoundError: No module named 'safetensors'
======= 1 failed, 2 passed, 1 skipped, 900 deselected, 2 errors in 4.32s =======
"""


def test_reads_pytest() -> None:
    from gpu_parse import parse_pytest

    found = parse_pytest(PYTEST + SUMMARY)
    counts = [found[name] for name in ("passed", "failed", "skipped", "errors")]
    assert counts == [2, 1, 1, 2]
    assert found["complete"]
    assert found["skip_reasons"] == ["needs two GPUs"]
    assert found["failures"] == [
        "../tests/test_cuda.py::test_graph: RuntimeError: got cudaErrorInvalidValue",
        "../tests/test_cuda.py::test_fixture: ValueError: no",
        "../tests/test_other.py: ModuleNotFoundError: No module named 'safetensors'",
    ]


def test_reads_a_pytest_with_workers() -> None:
    from gpu_parse import parse_pytest

    log = """\
[gw2] [ 20%] PASSED ../tests/test_cuda.py::test_every_dtype[torch.float32-channels 8]
[gw0] [100%] FAILED ../tests/test_cuda.py::test_bits
"""
    found = parse_pytest(log)
    assert (found["passed"], found["failed"]) == (1, 1)
    assert found["failures"] == ["../tests/test_cuda.py::test_bits"]


def test_reads_a_pytest_that_was_stopped() -> None:
    from gpu_parse import parse_pytest

    found = parse_pytest(PYTEST)
    assert (found["passed"], found["failed"], found["complete"]) == (2, 1, False)
    assert found["failures"][0] == "../tests/test_cuda.py::test_graph"


INVALID = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 16 bytes
=========     at void depthwise_conv_kernel<float>(ConvParams)+0x3e0
=========     by thread (32,0,0) in block (7,0,0)
120 calls of 6 ops on cuda
========= ERROR SUMMARY: 3 errors
"""
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at merge+0x10 and Read access at merge+0x90
120 calls of 6 ops on cuda
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""


@pytest.mark.parametrize(
    ("text", "errors", "kinds"),
    [
        ("120 calls of 6 ops on cuda\n========= ERROR SUMMARY: 0 errors\n", 0, []),
        (INVALID, 3, ["Invalid __global__ read of size 16 bytes"]),
        (RACE, 1, ["Error: Race reported between Write access at merge+0x10 and Read access at "]),
    ],
)
def test_reads_compute_sanitizer(text: str, errors: int, kinds: list[str]) -> None:
    from gpu_parse import parse_sanitizer

    found = parse_sanitizer(text)
    assert (found["errors"], found["calls"], found["ops"]) == (errors, 120, 6)
    assert all(kind.startswith(start) for kind, start in zip(found["kinds"], kinds, strict=True))


def test_an_unfinished_sanitizer_has_not_found_nothing() -> None:
    from gpu_parse import parse_sanitizer

    assert parse_sanitizer("========= COMPUTE-SANITIZER\n")["errors"] is None
    assert parse_sanitizer("")["errors"] is None


def row(mode: str, layer: str, percent: float, dtype: str = "bfloat16", **more: Any) -> Any:
    numbers = {"ms": 0.1, "gb_per_s": 2500.0, "percent_of_copy": percent, "stock_ratio": None}
    texts = {"disagreement": "", "missing": ""}
    return {"layer": layer, "mode": mode, "dtype": dtype, **numbers, **texts, **more}


def result(contender: str, ms: float, ours: float, memory: float | None = None) -> Any:
    numbers = {"median_ms": ms, "images_per_s": 1.0, "ratio": ms / ours, "memory_mb": memory}
    return {"contender": contender, "status": "timed", "reason": "", **numbers}


def model(mode: str, batch: int, dtype: str, *results: Any) -> Any:
    point = {"mode": mode, "batch": batch, "dtype": dtype}
    return {"point": point, "label": f"{mode} {batch} {dtype}", "results": list(results)}


def watched(tool: str, errors: int | None, status: str, reason: str, **counts: int) -> Any:
    texts = {"tool": tool, "status": status, "reason": reason}
    return {**texts, "errors": errors, "kinds": [], **counts}


COUNTS = {"passed": 7, "failed": 1, "errors": 0, "skipped": 2}


def sample() -> Any:
    failed = {"status": "failed", "reason": "TimeoutError: a | b", "median_ms": None}
    return {
        "schema": 1,
        "machine": {"gpu": "NVIDIA H100", "commit": "abc", "date": "2026-12-01"},
        "stages": [
            {"name": "tests", "status": "out of time", "seconds": 80.2, "reason": "stopped"}
        ],
        "tests": {**COUNTS, "failures": ["test_x: no"], "skip_reasons": [], "complete": False},
        "sanitizer": [
            watched("memcheck", 0, "done", "", calls=120, ops=6),
            watched("racecheck", None, "out of time", "stopped after 60 s"),
            watched("synccheck", 0, "failed", "exit status 1"),
        ],
        "kernels": [
            row("conv-statistics", "112/1/32", 85.0),
            row("conv-statistics", "14/1/512", 79.9),
            row("conv-backward", "7/1/1024", 70.0),
            row("conv-backward", "7/1/1024", 20.0, "float32"),
            row("batch-norm-statistics", "7/1/1024", 10.0),
            row("scale-shift-act", "7/1/1024", 0.0, ms=0.0, missing="no kernel for cuda"),
        ],
        "models": [
            model(
                "training",
                256,
                "bfloat16",
                result("mobilenet_ext", 10.0, 10.0, 2000.0),
                result("mobilenet_ext.graph", 8.0, 10.0),
                result("eager_channels_last", 16.0, 10.0, 4000.0),
                {"contender": "compile_max_autotune", **failed},
            ),
            model("inference", 1, "float16", result("mobilenet_ext.graph", 0.05, 0.1)),
        ],
    }


def test_status_has_every_result_beside_its_target() -> None:
    from gpu_markdown import markdown

    text = markdown(sample(), "gpu-nvidia-h100.json")
    for line in [
        "| GPU | NVIDIA H100 |",
        "| driver | unknown |",
        "| tests | out of time | 80 s | stopped |",
        "`pytest -m cuda`: 7 passed, 1 failed, 0 errors, 2 skipped; **the run was cut short**.",
        "| memcheck | 0 | 120 calls of 6 ops |  |",
        "| synccheck | 0, but failed | 0 calls of 0 ops | exit status 1 |",
        "| racecheck | not finished | 0 calls of 0 ops | stopped after 60 s |",
        "| conv-statistics | 112/1/32 | 100.0 | 2500 | 85 | ≥ 85 | yes |",
        "| conv-statistics | 14/1/512 | 100.0 | 2500 | 80 | ≥ 80 | **no** |",
        "| conv-backward | 7/1/1024 | 100.0 | 2500 | 20 | - | - |",
        "| batch-norm-statistics | 7/1/1024 | 100.0 | 2500 | 10 | - | - |",
        "| scale-shift-act | 7/1/1024 | no kernel for cuda | - | - | - | - |",
        "| eager_channels_last | 16.000 | 1 | 1.60× | 4,000 MB |",
        "| compile_max_autotune | failed: TimeoutError: a \\| b | - | - | - |",
    ]:
        assert line + "\n" in text, line


def test_targets_are_judged_by_our_best_contender() -> None:
    from targets import kernel_verdicts, model_verdicts

    words = {v.what: (v.measured, v.word) for v in model_verdicts(sample()["models"])}
    training = "training 1.0/224 batch 256, bfloat16, "
    assert words[training + "against eager_channels_last"] == ("2.00×", "yes")
    assert words[training + "against compile_max_autotune"] == ("-", "not measured")
    assert words[training + "memory of a step against eager_channels_last"] == ("50 %", "yes")
    single = "inference 1.0/224 batch 1, float16, "
    assert words[single + "a forward pass"] == ("50 µs", "yes")
    found = kernel_verdicts(sample()["kernels"])
    kernels = {v.what.split(",")[0]: (v.measured, v.met) for v in found}
    assert kernels["conv-statistics"] == ("1 of 2 layers and types", False)
    assert kernels["conv-backward"] == ("1 of 1 layers and types", True)
    assert kernels["scale-shift-act"] == ("-", None)


def test_committed_status_is_what_the_results_say() -> None:
    script = [sys.executable, str(BENCHMARKS / "gpu_markdown.py"), "--check"]
    done = subprocess.run(script, check=False)
    assert done.returncode == 0, "run python benchmarks/gpu_markdown.py"
