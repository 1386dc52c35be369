"""Adds the compiled libraries to the static metadata of pyproject.toml."""

import importlib.util
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "build_backend"))


METADATA_COMMANDS = {"dist_info", "egg_info", "sdist"}


class NeedsTorch(Command):
    """Stands in for build_ext where there is no torch: an sdist works, a build says what to do."""

    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        """Has no options."""

    def finalize_options(self) -> None:
        """Has no options."""

    def run(self) -> None:
        """Fails."""
        raise SystemExit("mobilenet_ext: torch is needed to build; install torch>=2.10 first")

    def get_source_files(self) -> list[str]:
        """MANIFEST.in names the sources."""
        return []


if METADATA_COMMANDS & set(sys.argv) or importlib.util.find_spec("torch") is None:
    setup(ext_modules=[Extension("mobilenet_ext._C", [])], cmdclass={"build_ext": NeedsTorch})
else:
    from extensions import build_command, plan

    ext_modules, facts = plan()
    setup(ext_modules=ext_modules, cmdclass={"build_ext": build_command(facts)})
