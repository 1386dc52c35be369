"""Hiding AVX-512 from a process, for benchmarks as on a machine that has AVX2 only."""

import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def hider(tmp_path: pathlib.Path) -> pathlib.Path:
    """The library that hides AVX-512."""
    return compile_library(BENCHMARKS / "without_avx512.c", tmp_path / "without_avx512.so")


def compile_library(source: pathlib.Path, library: pathlib.Path) -> pathlib.Path:
    compiler = shutil.which("cc")
    if not compiler or platform.machine() != "x86_64":
        pytest.skip("needs an x86 processor and a C compiler")
    build = [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*build, str(source)], check=True)
    return library


def run_hidden(
    hider: pathlib.Path, code: str, way: str = "faults"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, "LD_PRELOAD": str(hider), "WITHOUT_AVX512": way},
        cwd=hider.parent,
        capture_output=True,
        text=True,
    )


def test_hides_avx512(hider: pathlib.Path) -> None:
    done = run_hidden(
        hider,
        "import torch; from mobilenet_ext import _C;"
        "print(_C.available_isas(), torch.backends.cpu.get_cpu_capability())",
    )
    if "cannot be made to fault" in done.stderr:
        pytest.skip("CPUID does not fault on this machine")
    assert done.returncode == 0, done.stderr
    assert "baseline" in done.stdout
    assert "512" not in done.stdout


def test_hides_avx512_by_breakpoints(
    hider: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of what CPUID says is as before."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import without_avx512

    if not shutil.which("objdump"):
        pytest.skip("needs objdump")
    source = tmp_path / "asks.c"
    source.write_text("""
        #include <cpuid.h>
        void ask(unsigned leaf, unsigned* to) {
          __cpuid_count(leaf, 0, to[0], to[1], to[2], to[3]);
        }
    """)
    library = compile_library(source, tmp_path / "asks.so")
    code = """
import ctypes, json
ask, vendor, features = ctypes.CDLL("./asks.so").ask, (ctypes.c_uint * 4)(), (ctypes.c_uint * 4)()
ask(0, vendor), ask(7, features)
print(json.dumps([*vendor, features[1]]))
"""
    command = [sys.executable, "-c", code]
    plain = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    assert without_avx512.patch(library) == 1
    hidden = run_hidden(hider, code, "breakpoints")
    assert hidden.returncode == 0, hidden.stderr
    *vendor, features = json.loads(plain.stdout)
    f_dq_ifma_pf_er_cd_bw_vl = 0xDC230000
    assert json.loads(hidden.stdout) == [*vendor, features & ~f_dq_ifma_pf_er_cd_bw_vl]
