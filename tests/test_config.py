"""show_config and doctor: what a bug report has to contain, and what counts as a problem."""

import re

import pytest
import torch

from mobilenet_ext import _C, config
from mobilenet_ext._library import cuda_status
from mobilenet_ext.config import doctor, show_config


def rows() -> dict[str, str]:
    return dict(re.split(r"  +", line, maxsplit=1) for line in show_config().splitlines())


def test_report_tells_versions_and_state() -> None:
    report = rows()
    assert re.match(r"\d+\.\d+\.\d+ in /", report["mobilenet_ext"])
    assert re.match(re.escape(torch.__version__) + r", built with \d+\.\d+", report["torch"])
    assert report["instruction set"].startswith(f"{_C.isa()}, available: baseline")
    assert report["threads"] == str(torch.get_num_threads())
    assert report["CUDA library"] == cuda_status()
    assert report.keys() >= {"python", "compiler", "cpu", "GPUs", "settings"}


def test_report_tells_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILENET_EXT_ISA", "avx2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {"MOBILENET_EXT_ISA=avx2", "OMP_NUM_THREADS=3"} <= set(rows()["settings"].split(", "))


def test_cuda_status_is_one_line_that_says_why() -> None:
    assert re.fullmatch(r"loaded for .+|not (built|loaded): .+", cuda_status())


def test_doctor_finds_nothing_wrong_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor() == 0
    assert capsys.readouterr().out.endswith("no problem found\n")


def test_doctor_names_the_problem_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(config, "cuda_status", lambda: "not built: no nvcc was found")
    assert doctor() == 1
    out = capsys.readouterr().out
    assert "problem: torch sees a GPU but the CUDA library is not built: no nvcc was found" in out
    assert "MOBILENET_EXT_CUDA=1 python -m pip install" in out


def test_doctor_notices_slow_kernels(isas: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if len(isas) == 1:
        pytest.skip("this CPU runs one instruction set only")
    _C.set_isa(isas[0])
    assert doctor() == 1
    assert f"the {isas[0]} kernels are in use though this CPU runs {isas[-1]}" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("capability", "archs", "covered"),
    [
        ((9, 0), "8.0;9.0;12.0+PTX", True),
        ((8, 6), "8.0;9.0+PTX", True),
        ((12, 0), "8.0;9.0+PTX", True),
        ((12, 0), "8.0;9.0", False),
        ((7, 5), "8.0;9.0+PTX", False),
    ],
)
def test_gpu_without_code(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], archs: str, covered: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    problems = config._unsupported_gpus(archs)
    assert len(problems) == (0 if covered else 1)
    assert all("TORCH_CUDA_ARCH_LIST" in problem for problem in problems)
