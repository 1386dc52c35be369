"""The build's decisions, with fake toolkits and fake site-packages, and what the build produced."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import extensions
import find_cuda
import find_torch
import pytest
import torch
import torch_backend
from find_cuda import CudaObstacle, arch_list, cuda_policy, find_toolkit, toolkit_root
from find_torch import choose_torch
from setuptools import build_meta

from mobilenet_ext import _library

ROOT = Path(__file__).resolve().parents[1]
ARCHS = [(7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0), (12, 1)]

InstallTorch = Callable[[Path, str], Path]
FakeToolkit = Callable[..., Path]


@pytest.fixture
def install_torch() -> InstallTorch:
    def install(site: Path, version: str) -> Path:
        (site / "torch").mkdir(parents=True)
        (site / "torch" / "__init__.py").touch()
        info = site / f"torch-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        return site

    return install


def _is_ours(variable: str) -> bool:
    return variable.startswith("MOBILENET_EXT_")


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Makes torch not importable, as in an isolated build; returns the empty site-packages."""
    site = tmp_path / "own"
    # Tests run in an activated environment, whose torch an isolated build would find.
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", *filter(_is_ours, os.environ)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda kind: str(site))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    return site


def test_importable_torch_is_used_as_it_is() -> None:
    choice = choose_torch({"MOBILENET_EXT_ISOLATED": "1"})
    assert (choice.path, choice.requirements) == (None, ())


def test_torch_of_the_running_interpreter(isolated: Path, install_torch: InstallTorch) -> None:
    install_torch(isolated, "2.12.0+cu130")
    choice = choose_torch({})
    assert (choice.path, choice.requirements) == (isolated, ())
    assert "2.12.0+cu130" in choice.reason


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_torch_of_the_active_environment(
    isolated: Path, install_torch: InstallTorch, tmp_path: Path, variable: str
) -> None:
    site = install_torch(find_torch._site_packages_of(tmp_path / "env"), "2.10.0")
    assert choose_torch({variable: str(tmp_path / "env")}).path == site


@pytest.mark.parametrize("below", ["", "torch"])
def test_stated_path_comes_first(
    isolated: Path, install_torch: InstallTorch, tmp_path: Path, below: str
) -> None:
    install_torch(isolated, "2.12.0")
    stated = install_torch(tmp_path / "stated", "2.11.0")
    assert choose_torch({"MOBILENET_EXT_TORCH_PATH": str(stated / below)}).path == stated


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({}, "torch>=2.10"),
        ({"MOBILENET_EXT_BUILD_TORCH": "2.13.0"}, "torch==2.13.0"),
        ({"MOBILENET_EXT_ISOLATED": "1"}, "torch>=2.10"),
    ],
)
def test_torch_is_asked_for(
    isolated: Path, install_torch: InstallTorch, environ: dict[str, str], asked: str
) -> None:
    """None installed, another one wanted, or none to be looked for."""
    if environ:
        install_torch(isolated, "2.12.0")
    choice = choose_torch(environ)
    assert (choice.path, choice.requirements) == (None, (asked,))
    assert asked in choice.reason


def test_too_old_torch_is_not_built_against(isolated: Path, install_torch: InstallTorch) -> None:
    install_torch(isolated, "2.9.1")
    assert choose_torch({}).requirements == ("torch>=2.10",)


def test_backend_appends_the_path_and_requires_nothing(
    isolated: Path,
    install_torch: InstallTorch,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Last on the path, so that it hides no build requirement; and nothing stale is packed."""
    install_torch(isolated, "2.12.0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["first"])
    monkeypatch.setenv("PYTHONPATH", "first")
    monkeypatch.setattr(build_meta, "build_wheel", lambda *args: "built.whl")
    (tmp_path / "build" / "lib.stale").mkdir(parents=True)
    assert torch_backend.get_requires_for_build_wheel() == []
    assert torch_backend.build_wheel("out") == "built.whl"
    assert sys.path == ["first", str(isolated)]
    assert list((tmp_path / "build").iterdir()) == []
    assert capsys.readouterr().err.count("building against torch 2.12.0") == 2


def test_backend_asks_for_torch_to_build_only(isolated: Path) -> None:
    assert torch_backend.get_requires_for_build_sdist() == []
    assert torch_backend.get_requires_for_build_wheel() == ["torch>=2.10"]
    assert torch_backend.get_requires_for_build_editable() == ["torch>=2.10"]


@pytest.fixture
def fake_toolkit(tmp_path: Path) -> FakeToolkit:
    """Returns a function that makes a toolkit whose nvcc answers as the real one does."""
    if sys.platform == "win32":
        pytest.skip("the fake nvcc is a shell script")

    def make(name: str = "cuda", release: str = "13.0", top: Path | None = None) -> Path:
        root = tmp_path / name
        (root / "bin").mkdir(parents=True)
        nvcc = root / "bin" / "nvcc"
        nvcc.write_text(
            "#!/bin/sh\n"
            'case "$1" in\n'
            f"--version) echo 'Cuda compilation tools, release {release}, V{release}.88' ;;\n"
            "--list-gpu-arch) echo compute_80; echo compute_90; echo compute_120 ;;\n"
            f"--dryrun) echo '#$ TOP={top or root}/bin/..' >&2 ;;\n"
            "esac\n",
            encoding="utf-8",
        )
        nvcc.chmod(0o755)
        if top is None:
            (root / "include").mkdir()
            (root / "include" / "cuda_runtime.h").touch()
        return root

    return make


def test_wrapper_script_leads_to_the_toolkit(fake_toolkit: FakeToolkit) -> None:
    """An nvcc in a directory without headers is not the toolkit; its dry run names that."""
    root = fake_toolkit()
    wrapper = fake_toolkit("local", top=root)
    assert toolkit_root(wrapper / "bin" / "nvcc") == root
    assert toolkit_root(root / "bin" / "nvcc") == root
    assert find_toolkit("13.0", {"PATH": str(wrapper / "bin")}).root == root


def test_toolkit_of_the_same_major_version(fake_toolkit: FakeToolkit) -> None:
    toolkit = find_toolkit("13.2", {"CUDA_HOME": str(fake_toolkit())})
    assert toolkit.version == (13, 0)
    assert toolkit.archs == ((8, 0), (9, 0), (12, 0))


def test_obstacles_say_what_to_do(
    fake_toolkit: FakeToolkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(find_cuda, "DEFAULT_ROOT", tmp_path / "none")
    home = str(fake_toolkit(release="12.8"))
    for torch_cuda, environ, message in [
        (None, {}, "this torch is a CPU build; install a CUDA build"),
        ("13.0", {"CUDA_HOME": home}, r"built with CUDA 13\.0 but .* is 12\.8; set CUDA_HOME"),
        ("13.0", {"CUDA_HOME": "/nowhere"}, "CUDA_HOME=/nowhere holds no bin/nvcc"),
        ("13.0", {"PATH": str(tmp_path)}, "no nvcc was found; install the CUDA toolkit"),
    ]:
        with pytest.raises(CudaObstacle, match=message):
            find_toolkit(torch_cuda, environ)


@pytest.mark.parametrize(
    ("supported", "visible", "expected"),
    [
        (ARCHS, [], "8.0;9.0;12.0+PTX"),
        (ARCHS[:4], [], "8.0;9.0+PTX"),
        (ARCHS, [(9, 0), (9, 0)], "9.0+PTX"),
        (ARCHS[:4], [(12, 0)], "9.0+PTX"),
        (ARCHS, [(9, 0), (8, 6)], "8.6;9.0+PTX"),
        ([(5, 0), (7, 0)], [], "7.0+PTX"),
    ],
    ids=["default", "old nvcc", "two alike", "gpu newer than nvcc", "two gpus", "ancient nvcc"],
)
def test_arch_list(
    supported: list[tuple[int, int]], visible: list[tuple[int, int]], expected: str
) -> None:
    assert arch_list(supported, visible) == expected


def test_cuda_policy() -> None:
    assert cuda_policy({}) == "auto"
    assert cuda_policy({"FORCE_CUDA": "1"}) == "1"
    assert cuda_policy({"FORCE_CUDA": "1", "MOBILENET_EXT_CUDA": "0"}) == "0"
    with pytest.raises(SystemExit, match="MOBILENET_EXT_CUDA must be auto, 1 or 0, got 'yes'"):
        cuda_policy({"MOBILENET_EXT_CUDA": "yes"})


def test_cuda_obstacle_is_an_error_only_when_cuda_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(extensions, "_cuda_sources", lambda: ["kernel.cu"])
    monkeypatch.setenv("MOBILENET_EXT_CUDA", "1")
    with pytest.raises(SystemExit, match="MOBILENET_EXT_CUDA=1, but this torch is a CPU build"):
        extensions._choose_cuda()
    monkeypatch.setenv("MOBILENET_EXT_CUDA", "auto")
    toolkit, status = extensions._choose_cuda()
    assert toolkit is None
    assert status.startswith("not built: this torch is a CPU build")
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "mobilenet_ext"
    package.mkdir()
    monkeypatch.setattr(_library, "_HERE", package)
    error = ImportError("undefined symbol: x")
    assert "installed without its compiled library" in _library._explain(error)
    (tmp_path / "setup.py").touch()
    assert "imported from its source tree" in _library._explain(error)
    (package / "_C.cpython-27.so").touch()
    assert "compiled for another Python (_C.cpython-27.so)" in _library._explain(error)
    (package / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}").touch()
    assert "does not load under torch" in _library._explain(error)
    assert "undefined symbol: x" in _library._explain(error)


@pytest.mark.parametrize("name", ["_C", "_C_cuda"])
def test_no_unstable_torch_symbol_is_needed(name: str) -> None:
    """One build runs under every torch from 2.10 on, so it needs no at:: or c10:: symbol."""
    library = _library._binary(name)
    if library is None:
        pytest.skip(f"{name} was not built")
    nm = shutil.which("nm") or pytest.skip("no nm")
    listed = subprocess.run(
        [nm, "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    )
    assert "aoti_torch" in listed.stdout or "torch_" in listed.stdout
    assert re.findall(r"\b_ZNK?(?:2at|3c10)\S*", listed.stdout) == []


def test_installed_metadata_is_that_of_the_source_tree() -> None:
    installed = importlib.metadata.metadata("mobilenet_ext")
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated is not None
    assert installed["Version"] == stated[1]
    assert "torch>=2.10" in installed.get_all("Requires-Dist", [])
