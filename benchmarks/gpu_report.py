#!/usr/bin/env python3
"""Test and measure the CUDA kernels on this machine's GPU, within ten minutes; needs no network.

    python benchmarks/gpu_report.py                           # builds first
    python benchmarks/gpu_report.py --no-build --output DIR   # the package is installed already
    python benchmarks/gpu_report.py --no-build --resume       # what did not fit into the first run

Writes GPU_STATUS.md and benchmarks/results/gpu-NAME.json anew after every stage. Exits with 0 when
everything ran and was right, with 1 when not, and with 2 where there is no GPU.
"""

import argparse
import datetime
import json
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import machine
from gpu_markdown import STATUS, write_status
from gpu_sanitizer import is_clean
from gpu_stages import DRY_RUN, ROOT, Content, Scale, plan, result_of
from stages import Budget, run_stage

SCHEMA = 1
LIMIT, BUILD = 570, 130  # seconds: ten minutes, less what starting takes; what a build may take
PROBE = """
import json, torch
found = torch.cuda.is_available()
name = torch.cuda.get_device_name() if found else None
print(json.dumps({"gpu": name, "torch": torch.__version__, "cuda": torch.version.cuda}))
"""


def probe() -> dict[str, Any]:
    """Return the GPU that torch sees and torch's versions; `why` when there is nothing to see."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        return {"gpu": None, "why": (done.stderr.strip().splitlines() or ["python failed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "why": f"torch {found['torch']} sees no GPU"}


def new_report(gpu: dict[str, Any], commit: str | None) -> Content:
    """Return a report without results."""
    now = datetime.datetime.now(datetime.timezone.utc)
    facts = {
        "gpu": gpu["gpu"],
        "driver": machine.driver(),
        "torch": gpu["torch"],
        "cuda": gpu["cuda"],
        "commit": commit or machine.commit(),
        "date": now.isoformat(timespec="seconds"),
    }
    empty: Content = {"tests": None, "sanitizer": [], "kernels": [], "models": []}
    return {"schema": SCHEMA, "machine": facts, "stages": [], **empty}


def earlier_report(path: pathlib.Path, facts: dict[str, Any]) -> Content | None:
    """Return an earlier report of the same commit, GPU and torch, if there is one."""
    try:
        content: Content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = all(content["machine"].get(key) == facts[key] for key in ("gpu", "torch", "commit"))
    return content if same else None


def file_name(gpu: str) -> str:
    """Return e.g. gpu-nvidia-h100-80gb-hbm3.json."""
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def save(content: Content, path: pathlib.Path, status: pathlib.Path) -> None:
    """Write both files, each replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
    write_status(content, status, path.name)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = ["tests", "sanitizer", "kernels", "models"]
    parser.add_argument("--no-build", action="store_true", help="the package is installed already")
    parser.add_argument("--output", type=pathlib.Path, metavar="DIR", help="default: in the tree")
    parser.add_argument("--only", nargs="+", choices=groups, help="and keep the rest as it was")
    parser.add_argument("--resume", action="store_true", help="leave out what is done already")
    limit = f"seconds in all (default {LIMIT}, or {LIMIT - BUILD} where the build came before)"
    parser.add_argument("--limit", type=float, help=limit)
    parser.add_argument(
        "--dry-run", metavar="DIR", type=pathlib.Path, help="try all stages on the CPU, tiny"
    )
    parser.add_argument("--commit", help="what is measured, where git does not tell")
    options = parser.parse_args(arguments)
    if options.limit is None:
        options.limit = LIMIT - BUILD if options.no_build else LIMIT
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all stages, or those of --only."""
    options = parse(arguments)
    budget, gpu = Budget(options.limit), probe()
    if options.dry_run:
        options.output, gpu["gpu"] = options.dry_run, "no GPU, dry run"
    if gpu["gpu"] is None:
        print(f"gpu_report: nothing was run: {gpu['why']}", file=sys.stderr)
        return 2
    output = options.output.resolve() if options.output else None
    work = output / "gpu_report" if output else ROOT / "build/gpu_report"
    path = (output or ROOT / "benchmarks/results") / file_name(gpu["gpu"])
    status = (output or ROOT) / STATUS
    content = new_report(gpu, options.commit)
    if options.only or options.resume:
        content = earlier_report(path, content["machine"]) or content
    done = {entry["name"] for entry in content["stages"] if entry["status"] == "done"}
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    scale = DRY_RUN if options.dry_run else Scale()
    for step in plan(work, build=not options.no_build, scale=scale):
        name, needed = step.stage.name, step.group in ("build", "machine")
        if not needed and options.only and step.group not in options.only:
            continue
        if not needed and options.resume and name in done:
            continue
        print(f"{name} ({budget.left():.0f} s left)", flush=True)
        log, result = work / f"{name}.log", result_of(name, work)
        outcome = step.finish(run_stage(step.stage, budget, log, work), content, log, result)
        print(f"  {outcome.status} after {outcome.seconds:.0f} s {outcome.reason}", flush=True)
        others = [entry for entry in content["stages"] if entry["name"] != name]
        content["stages"] = [*others, outcome.as_json()]
        save(content, path, status)
    print(f"wrote {status} and {path}; logs are in {work}")
    return 0 if is_good(content) else 1


def is_good(content: Content) -> bool:
    """Return whether every stage ran and nothing was wrong; speed is another matter."""
    tests = content["tests"] or {}
    return (
        all(entry["status"] == "done" for entry in content["stages"])
        and not tests.get("failed")
        and not tests.get("errors")
        and all(is_clean(entry) for entry in content["sanitizer"])
        and not any(row["disagreement"] or row["missing"] for row in content["kernels"])
    )


if __name__ == "__main__":
    sys.exit(main())
