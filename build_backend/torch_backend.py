"""PEP 517 backend: setuptools, built against the torch that is already installed.

With torch in `build-system.requires`, pip would download gigabytes and build against another
torch than the one the package then runs with; without it, an isolated build finds no torch at
all. So the hooks look for the user's torch (find_torch.py) and ask for one only when there is
none.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from find_torch import choose_torch
from setuptools import build_meta

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ConfigSettings = dict[str, Any] | None


def get_requires_for_build_sdist(config_settings: ConfigSettings = None) -> list[str]:
    """An sdist only copies files."""
    return []


def get_requires_for_build_wheel(config_settings: ConfigSettings = None) -> list[str]:
    """Asks for torch only where none is installed."""
    choice = choose_torch()
    _log(choice.reason)
    return list(choice.requirements)


get_requires_for_build_editable = get_requires_for_build_wheel


def build_sdist(sdist_directory: str, config_settings: ConfigSettings = None) -> str:
    """Packs the sources."""
    return build_meta.build_sdist(sdist_directory, config_settings)


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: ConfigSettings = None
) -> str:
    """Writes the metadata, which is static, without importing torch."""
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: ConfigSettings = None
) -> str:
    """Writes the metadata, which is static, without importing torch."""
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(
    wheel_directory: str,
    config_settings: ConfigSettings = None,
    metadata_directory: str | None = None,
) -> str:
    """Compiles the libraries and packs the wheel."""
    for stale in Path("build").glob("lib*"):
        shutil.rmtree(stale)  # setuptools would pack whatever an earlier build left there
    _make_torch_importable()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: ConfigSettings = None,
    metadata_directory: str | None = None,
) -> str:
    """Compiles the libraries into the source tree and packs the wheel that points there."""
    _make_torch_importable()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def _make_torch_importable() -> None:
    """Appends the chosen torch's directory at the end, so that it hides no build requirement."""
    choice = choose_torch()
    if choice.path is None:
        return
    _log(choice.reason)
    directory = str(choice.path)
    sys.path.append(directory)
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{inherited}{os.pathsep}{directory}" if inherited else directory


def _log(message: str) -> None:
    print(f"mobilenet_ext: {message}", file=sys.stderr)
