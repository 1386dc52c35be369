#!/usr/bin/env python3
"""Run gpu_small.py under the four tools of compute-sanitizer, side by side.

python benchmarks/gpu_sanitizer.py --json sanitizer.json --limit 60
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gpu_parse import parse_sanitizer
from stages import Budget, Stage, run_stage

HERE = pathlib.Path(__file__).resolve().parent
# What torch asks of the driver in vain, and lives with, is no error of the kernels.
TOOLS: dict[str, tuple[str, ...]] = {
    "memcheck": ("--report-api-errors", "no"),
    "racecheck": (),
    "initcheck": (),
    "synccheck": (),
}
OWN_ALLOCATIONS = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def find_sanitizer() -> str | None:
    """Return compute-sanitizer from PATH or from the toolkit."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [os.environ.get("PATH", ""), *(f"{root}/bin" for root in roots if root)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def run_tool(tool: str, sanitizer: str, budget: Budget, folder: pathlib.Path) -> dict[str, Any]:
    """Return what one tool found."""
    script = [sys.executable, str(HERE / "gpu_small.py")]
    stage = Stage(
        tool, [sanitizer, "--tool", tool, *TOOLS[tool], *script], budget.left(), OWN_ALLOCATIONS
    )
    log = folder / f"{tool}.log"
    outcome = run_stage(stage, budget, log, folder)
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return {"tool": tool, **outcome.as_json(), **parse_sanitizer(text)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one entry a tool; 1 when any found something, did not finish or is not there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--limit", type=float, default=60, help="seconds of each tool")
    options = parser.parse_args(arguments)
    sanitizer = find_sanitizer()
    found: list[dict[str, Any]]
    if sanitizer is None:
        missing = "no compute-sanitizer on PATH or in CUDA_HOME"
        found = [{"tool": t, "status": "not available", "reason": missing} for t in TOOLS]
    else:
        budget = Budget(options.limit)
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(TOOLS)) as pool:
            place = pathlib.Path(folder)
            found = list(pool.map(lambda tool: run_tool(tool, sanitizer, budget, place), TOOLS))
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0 if all(is_clean(entry) for entry in found) else 1


def is_clean(entry: dict[str, Any]) -> bool:
    """Return whether a tool came to its end and found nothing."""
    return entry["status"] == "done" and entry["errors"] == 0


if __name__ == "__main__":
    sys.exit(main())
