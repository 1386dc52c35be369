"""The checker of kernel resources: it reads ptxas, reports every drift, and holds for the file."""

import re
import subprocess
from pathlib import Path

import cuda_budget
import cuda_occupancy
import pytest
from cuda_budget import Row, drift, local_memory, main, parse, read_budget, write_budget
from cuda_occupancy import ESTIMATES, Bounds, blocks_per_multiprocessor, launch_bounds, table

SLIDING = (
    "_ZN13mobilenet_ext4cuda21depthwise_conv_kernelINS0_13SlidingWindowIfLi4ELi1ENS0_9Normalize"
    "IfLi4ELNS_10ActivationE2EEEEELb1EEEvNS0_10ConvParamsE"
)
MERGE = "_ZN13mobilenet_ext4cuda20merge_moments_kernelIfEEvNS0_11MergeParamsIT_EE"
# As pip indents it; the second kernel calls a function that was not inlined.
LOG = f"""\
  [3/9] /usr/local/cuda/bin/nvcc --generate-code=arch=compute_80,code=sm_80 -c depthwise_conv.cu
  ptxas info    : 0 bytes gmem
  ptxas info    : Compiling entry function '{SLIDING}' for 'sm_80'
  ptxas info    : Function properties for {SLIDING}
      0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
  ptxas info    : Used 128 registers, used 1 barriers, 6400 bytes smem, 632 bytes cmem[0]
  ptxas info    : Compile time = 55.558 ms
  ptxas info    : Compiling entry function '{MERGE}' for 'sm_120'
  ptxas info    : Function properties for {MERGE}
      8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
  ptxas info    : Function properties for __internal_slowpath
      40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
  ptxas info    : Used 46 registers, used 1 barriers, 48 bytes cumulative stack size
  ptxas info    : Compile time = 23.750 ms
"""
FAST = Row(
    "depthwise_conv_kernel<SlidingWindow<float, 4, 1, Normalize<float, 4, relu6>>, true>",
    "sm_80",
    registers=128,
    shared=6400,
    stack=0,
    spills=0,
)
CALLING = Row("merge_moments_kernel<float>", "sm_120", 46, 0, 48, 16)


def test_reads_what_ptxas_says() -> None:
    assert parse(LOG) == [FAST, CALLING]


def test_a_kernel_compiled_in_two_files_is_one_row_the_worse_one() -> None:
    again = LOG.replace("Used 128 registers", "Used 126 registers")
    assert parse(LOG + again) == parse(again + LOG) == [FAST, CALLING]


@pytest.mark.parametrize(
    ("line", "match"), [("Used 128", "registers of _ZN13"), ("Compiling entry", "which kernel")]
)
def test_lines_out_of_order_are_an_error(line: str, match: str) -> None:
    broken = "\n".join(text for text in LOG.splitlines() if line not in text or MERGE in text)
    with pytest.raises(ValueError, match=match):
        parse(broken)


def test_names_of_functions_without_templates() -> None:
    signature = "mobilenet_ext::cuda::(anonymous namespace)::f(mobilenet_ext::cuda::P, int)"
    assert cuda_budget.short(signature) == "f"
    assert cuda_budget.short("void mobilenet_ext::cuda::f<(Activation)1, A<(bool)1> >(P)") == (
        "f<relu, A<(bool)1>>"
    )


def test_the_file_gives_back_what_was_written() -> None:
    text = write_budget("13.0.88", [CALLING, FAST])
    assert read_budget(text) == ("13.0.88", [FAST, CALLING])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"registers": 129}, "129 registers, more than 128"),
        ({"registers": 120}, "120 registers, less than (good: update the file) 128"),
        ({"shared": 6912}, "6912 shared, more than 6400"),
        ({"stack": 8}, "8 stack, more than 0"),
        ({"spills": 4}, "4 spills, more than 0"),
    ],
)
def test_every_drift_is_reported(change: dict[str, int], complaint: str) -> None:
    assert drift([FAST, CALLING], [CALLING, FAST]) == []
    assert drift([FAST._replace(**change)], [FAST]) == [f"{FAST.kernel} on sm_80: {complaint}"]


def test_kernels_that_come_and_go_are_reported() -> None:
    assert drift([FAST], []) == [f"{FAST.kernel} on sm_80: not in the budget"]
    assert drift([], [FAST]) == [f"{FAST.kernel} on sm_80: in the budget, not compiled"]


def test_local_memory_is_for_generic_kernels_only() -> None:
    generic = FAST._replace(kernel="depthwise_conv_kernel<AnyWindow<float, 1>, true>", stack=8)
    double = FAST._replace(kernel="merge_moments_kernel<double>", spills=8)
    function = FAST._replace(kernel="any_grad_input_kernel<float, 4>", stack=8)
    assert local_memory([FAST, generic, double, function]) == []
    assert len(local_memory([FAST._replace(stack=8), FAST._replace(spills=4), CALLING])) == 3
    newest = FAST._replace(arch="sm_120", stack=16)
    assert local_memory([newest._replace(spills=80)]) == []
    assert len(local_memory([newest._replace(spills=84)])) == 1


def run(tmp_path: Path, log: str, budget: str, *options: str) -> int:
    (tmp_path / "build.log").write_text(log)
    (tmp_path / "budget.txt").write_text(budget)
    paths = ["--log", str(tmp_path / "build.log"), "--budget", str(tmp_path / "budget.txt")]
    return main([*paths, *options])


@pytest.fixture
def nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that says it is 13.0.88."""
    monkeypatch.setattr(cuda_budget, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(cuda_budget, "nvcc_version", lambda nvcc: "13.0.88")


GOOD_LOG = LOG.split("  ptxas info    : Compiling entry function '" + MERGE, maxsplit=1)[0]
GOOD_BUDGET = write_budget("13.0.88", [FAST])


@pytest.mark.usefixtures("nvcc")
def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, GOOD_LOG, GOOD_BUDGET) == 0
    assert "1 kernels on sm_120, sm_80, sm_90 are as budgeted" in capsys.readouterr().out
    assert run(tmp_path, GOOD_LOG.replace("Used 128", "Used 130"), GOOD_BUDGET) == 1
    assert "130 registers, more than 128" in capsys.readouterr().out
    assert run(tmp_path, "", GOOD_BUDGET) == 1
    assert "in the budget, not compiled" in capsys.readouterr().out
    assert run(tmp_path, "", GOOD_BUDGET, "--archs", "90") == 0


@pytest.mark.usefixtures("nvcc")
def test_update_writes_the_file_but_forgives_no_spills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, GOOD_LOG, "", "--update") == 0
    assert (tmp_path / "budget.txt").read_text() == GOOD_BUDGET
    assert run(tmp_path, LOG, "", "--update") == 1
    assert "48 bytes of stack and 16 bytes of spills in a fast kernel" in capsys.readouterr().out


@pytest.mark.usefixtures("nvcc")
def test_another_nvcc_is_said_and_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, GOOD_LOG, GOOD_BUDGET.replace("13.0.88", "13.1.9")) == 3
    assert "NOT CHECKED: nvcc is 13.0.88" in capsys.readouterr().out
    assert run(tmp_path, GOOD_LOG, GOOD_BUDGET.replace("13.0.88", "13.0.48")) == 0


def test_the_nvcc_of_the_build_is_asked_for_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_budget.nvcc_version(cuda_budget.find_nvcc()) == "13.0.88"


@pytest.mark.parametrize(
    ("row", "threads", "expected"),
    [
        # 168 registers: 12 warps of 16384 / 5376 = 3 in each of four files, 4 warps a block.
        (FAST._replace(registers=168), 128, (3, "registers")),
        (FAST._replace(registers=24), 128, (16, "threads")),
        (FAST._replace(registers=32, arch="sm_120", shared=0), 32, (24, "blocks")),
        (FAST._replace(registers=40, shared=24576, arch="sm_120"), 128, (4, "shared memory")),
    ],
)
def test_blocks_of_a_multiprocessor(row: Row, threads: int, expected: tuple[int, str]) -> None:
    assert blocks_per_multiprocessor(row, threads) == expected


def test_launch_bounds_are_those_of_the_sources(tmp_path: Path) -> None:
    found = launch_bounds(cuda_budget.SOURCES)
    assert found["any_grad_input_kernel"] == Bounds(128, 3)
    assert table([FAST], cuda_budget.SOURCES).splitlines()[-1] == (
        f"| `{FAST.kernel}` | sm_80 | 128 | 6400 | 0 | 0 | 128 | 4 | registers | 16 of 64 | - | - |"
    )

    (tmp_path / "kernels.h").write_text(
        "constexpr int kThreads = 96;\n"
        "__global__ void __launch_bounds__(kThreads, Window::kMinBlocks)\n    f(Params p) {\n"
        "__global__ void __launch_bounds__(64) g() {\n"
        "__global__ void __launch_bounds__(kUnknown) h() {\n"
    )
    assert launch_bounds(tmp_path) == {"f": Bounds(96, 0), "g": Bounds(64, 0)}
    assert cuda_occupancy.line(FAST, None).endswith("| - | - | - | - | - | - |")


def test_every_estimate_of_the_design_is_beside_a_kernel() -> None:
    _, rows = read_budget(cuda_budget.BUDGET.read_text())
    bounds = Bounds(128, 3)
    for estimate in ESTIMATES:
        kernels = [row for row in rows if re.search(estimate.kernels, row.kernel)]
        assert kernels, estimate.kernels
        for row in kernels:
            cells = cuda_occupancy.line(row, bounds).split(" | ")
            assert cells[-2] == str(estimate.warps)


def test_the_committed_budget_covers_three_archs_and_no_fast_kernel_spills() -> None:
    nvcc, rows = read_budget(cuda_budget.BUDGET.read_text())
    assert nvcc[0].isdigit()
    kernels = [{row.kernel for row in rows if row.arch == f"sm_{a}"} for a in cuda_budget.ARCHS]
    assert kernels[0] == kernels[1] == kernels[2]
    assert any("SlidingWindow" in kernel for kernel in kernels[0])
    assert local_memory(rows) == []
    assert cuda_budget.BUDGET.read_text() == write_budget(nvcc, rows)


def test_help_says_how_to_update() -> None:
    script = [cuda_budget.sys.executable, str(Path(cuda_budget.__file__)), "--help"]
    assert "--update" in subprocess.run(script, capture_output=True, text=True, check=True).stdout
