"""Finds the torch that the package will run with, so that the build uses it and no other.

Build isolation hides the user's site-packages from the build, but not where they are. A front end
that builds in a virtual environment of its own (uv, `python -m build`) hides that too; an
activated environment or MOBILENET_EXT_TORCH_PATH still tells.
"""

import importlib.metadata
import importlib.util
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MINIMUM_TORCH", "TorchChoice", "choose_torch", "torch_version_in"]

MINIMUM_TORCH = (2, 10)


@dataclass(frozen=True)
class TorchChoice:
    """Which torch the build uses.

    Attributes:
        reason: One line for the build log.
        path: Directory to append to `sys.path`, None when torch is importable or required.
        requirements: What the front end has to install for the build.
    """

    reason: str
    path: Path | None = None
    requirements: tuple[str, ...] = ()


def choose_torch(environ: Mapping[str, str] = os.environ) -> TorchChoice:
    """Returns the torch to build against: importable, else found, else asked for."""
    if importlib.util.find_spec("torch") is not None:
        return TorchChoice("building against the torch that is importable here")
    pinned = environ.get("MOBILENET_EXT_BUILD_TORCH")
    asked = f"torch=={pinned}" if pinned else f"torch>={'.'.join(map(str, MINIMUM_TORCH))}"
    if environ.get("MOBILENET_EXT_ISOLATED") == "1":
        return TorchChoice(f"MOBILENET_EXT_ISOLATED=1: asking for {asked}", None, (asked,))
    if pinned:
        return TorchChoice(f"MOBILENET_EXT_BUILD_TORCH is set: asking for {asked}", None, (asked,))
    for directory in _site_directories(environ):
        version = torch_version_in(directory)
        if version is None:
            continue
        if _release(version) >= MINIMUM_TORCH:
            return TorchChoice(f"building against torch {version} in {directory}", directory)
    return TorchChoice(f"no usable torch is installed: asking for {asked}", None, (asked,))


def torch_version_in(directory: Path) -> str | None:
    """Returns the version of the torch installed in a site-packages directory, if there is one."""
    if not (directory / "torch" / "__init__.py").is_file():
        return None
    for distribution in importlib.metadata.distributions(name="torch", path=[str(directory)]):
        return distribution.version
    return None


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _site_directories(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yields the directories that may hold the user's torch, the surest first."""
    if stated := environ.get("MOBILENET_EXT_TORCH_PATH"):
        given = Path(stated).resolve()
        yield given
        yield given.parent
    for kind in ("platlib", "purelib"):
        yield Path(sysconfig.get_path(kind))
    if sys.prefix == sys.base_prefix:
        yield Path(site.getusersitepackages())
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := environ.get(variable):
            yield _site_packages_of(Path(prefix))


def _site_packages_of(prefix: Path) -> Path:
    if os.name == "nt":
        return prefix / "Lib" / "site-packages"
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return prefix / "lib" / python / "site-packages"
